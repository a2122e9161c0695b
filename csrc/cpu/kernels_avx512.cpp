#include "kernels-inl.h"

extern const Kernels kKernels_avx512;
const Kernels kKernels_avx512 = {Isa::avx512, linear, attention, layer_norm, pack_keys};

}  // namespace gitfast::cpu
