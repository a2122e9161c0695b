// The kernels compiled for AVX2 and FMA.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kAvx2Kernels = {Isa::avx2, linear, attention, layer_norm, pack_head, kRoundRows, quantize_rows};

}  // namespace gitfast::cpu
