// Activations of 16 values at a time, and of whole rows.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

namespace gitfast::cpu {
namespace {

inline F32x16 activate(const F32x16& x, Activation act) {
  if (act == Activation::quick_gelu) {
    const F32x16 scaled = x * splat16(1.702f);
    return x * map(scaled, sigmoid);
  }
  if (act == Activation::gelu_erf) return x * map(x, normal_cdf);
  return x;
}

void bias_activation(const float* x, int64_t x_stride, const float* bias, Activation act, int64_t rows, int64_t d,
                     float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride)
    for (int64_t i = 0; i < d; i += kWidth) {
      const int64_t n = d - i < kWidth ? d - i : kWidth;
      const F32x16 b = bias ? load_part(bias + i, n) : F32x16{};
      store_part(y + i, activate(load_part(x + i, n) + b, act), n);
    }
}

}  // namespace
}  // namespace gitfast::cpu
