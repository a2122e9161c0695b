// The kernels compiled for NEON with products of bfloat16.
#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kNeonBf16Kernels = {Isa::neon_bf16, linear,     attention,     layer_norm,
                                  pack_head,      kRoundRows, quantize_rows, quantize_rows_to_bytes};

}  // namespace gitfast::cpu
