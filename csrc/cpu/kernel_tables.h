// The tables kernels_<isa>.cpp define. Only kernels_for reads them: it asks first whether this machine can run one.
#pragma once

#include "kernels.h"

namespace gitfast::cpu {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx2VnniKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAvx512Bf16VnniKernels;
extern const Kernels kAmxKernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonDotKernels;
extern const Kernels kNeonBf16Kernels;
#endif

}  // namespace gitfast::cpu
