// The kernels compiled for AMX.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAmxKernels = {Isa::amx,   linear,  attention, layer_norm, pack_head,
                             kRoundRows, nullptr, nullptr,   kRoundTiles};

}  // namespace gitfast::cpu
