// The kernels compiled for NEON.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kNeonKernels = {Isa::neon, linear, attention, layer_norm, pack_head, kRoundRows};

}  // namespace gitfast::cpu
