// The kernels compiled for AVX-512 with products of bfloat16, and of int16 where weights are int8.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx512Bf16VnniKernels = {
    Isa::avx512_bf16_vnni, linear, attention, layer_norm, pack_head, kRoundRows, quantize_rows, quantize_rows_to_bytes};

}  // namespace gitfast::cpu
