// The kernels compiled for AVX-512 with sums of products of int16 and, for w8a8, of int8.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx512VnniKernels = {Isa::avx512_vnni, linear,     attention,     layer_norm,
                                    pack_head,        kRoundRows, quantize_rows, quantize_rows_to_bytes};

}  // namespace gitfast::cpu
