// The kernels compiled for AVX-512 with products of bfloat16 and, for w8a8, of int8.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx512Bf16Kernels = {Isa::avx512_bf16, linear,     attention, layer_norm,
                                    pack_head,        kRoundRows, nullptr,   quantize_rows_to_bytes};

}  // namespace gitfast::cpu
