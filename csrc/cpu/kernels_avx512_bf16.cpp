// The kernels compiled for AVX-512 with products of bfloat16.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx512Bf16Kernels = {Isa::avx512_bf16, linear, attention, layer_norm, pack_head, kRoundRows};

}  // namespace gitfast::cpu
