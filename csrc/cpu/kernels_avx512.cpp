// The kernels compiled for AVX-512.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx512Kernels = {Isa::avx512, linear, attention, layer_norm, pack_head, kRoundRows, quantize_rows};

}  // namespace gitfast::cpu
