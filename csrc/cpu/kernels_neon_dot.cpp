#include "kernels-inl.h"

namespace gitfast::cpu {

const Kernels kNeonDotKernels = {Isa::neon_dot, linear,     attention,     layer_norm,
                                 pack_head,     kRoundRows, quantize_rows, quantize_rows_to_bytes};

}  // namespace gitfast::cpu
