// The kernels compiled without SIMD, for any CPU.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kScalarKernels = {Isa::scalar, linear, attention, layer_norm, pack_head, kRoundRows};

}  // namespace gitfast::cpu
