#include "kernels-inl.h"

extern const Kernels kKernels_scalar;
const Kernels kKernels_scalar = {Isa::scalar, linear, attention, layer_norm, pack_keys};

}  // namespace gitfast::cpu
