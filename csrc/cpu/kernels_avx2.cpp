#include "kernels-inl.h"

extern const Kernels kKernels_avx2;
const Kernels kKernels_avx2 = {Isa::avx2, linear, attention, layer_norm, pack_keys};

}  // namespace gitfast::cpu
