// The kernels compiled for AVX-512 with sums of products of int16.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx512VnniKernels = {Isa::avx512_vnni, linear,     attention,    layer_norm,
                                    pack_head,        kRoundRows, quantize_rows};

}  // namespace gitfast::cpu
