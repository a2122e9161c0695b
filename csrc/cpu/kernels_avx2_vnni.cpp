// The kernels compiled for AVX2 with sums of products of int16 and, for w8a8, of int8.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx2VnniKernels = {Isa::avx2_vnni, linear,     attention,     layer_norm,
                                  pack_head,      kRoundRows, quantize_rows, quantize_rows_to_bytes};

}  // namespace gitfast::cpu
