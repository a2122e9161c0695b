// layer_norm: mean, then the squares of what is left, both summed in 16 lanes.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

namespace gitfast::cpu {
namespace {

inline float mean_of(const float* x, int64_t d) {
  F32x16 sum = {};
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth) sum = sum + load(x + i);
  if (i < d) sum = sum + load_part(x + i, d - i);
  return sum_lanes(sum) / static_cast<float>(d);
}

inline float variance_of(const float* x, int64_t d, float mean) {
  const F32x16 m = splat16(mean);
  F32x16 sum = {};
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    const F32x16 c = load(x + i) - m;
    sum = fma(c, c, sum);
  }
  if (i < d) {
    const F32x16 c = load_part(x + i, d - i, mean) - m;
    sum = fma(c, c, sum);
  }
  return sum_lanes(sum) / static_cast<float>(d);
}

void layer_norm(const LayerNormArgs& args) {
  const int64_t d = args.d;
  const float *x = args.x, *gamma = args.gamma, *beta = args.beta;
  float* y = args.y;
  for (int64_t r = 0; r < args.rows; ++r, x += args.x_stride, y += args.y_stride) {
    const float mean = mean_of(x, d);
    const float scale = 1.0f / __builtin_sqrtf(variance_of(x, d, mean) + args.eps);
    const F32x16 m = splat16(mean), s = splat16(scale);
    int64_t i = 0;
    for (; i + kWidth <= d; i += kWidth) store(y + i, fma((load(x + i) - m) * s, load(gamma + i), load(beta + i)));
    if (i < d) {
      const int64_t n = d - i;
      store_part(y + i, fma((load_part(x + i, n) - m) * s, load_part(gamma + i, n), load_part(beta + i, n)), n);
    }
  }
}

}  // namespace
}  // namespace gitfast::cpu
