// The kernels of AMX with arrays for its registers, to be tested where vectors multiply bfloat16 but no tiles do: with
// AVX-512 BF16, and, compiled for 64-bit ARM, under an emulator on any machine.
#define GITFAST_EMULATE_AMX
#include "cpu/kernels-inl.h"

namespace gitfast::cpu {

extern const Kernels kEmulatedAmxKernels;
const Kernels kEmulatedAmxKernels = {Isa::amx,   linear,  attention, layer_norm, pack_head,
                                     kRoundRows, nullptr, nullptr,   kRoundTiles};

}  // namespace gitfast::cpu
