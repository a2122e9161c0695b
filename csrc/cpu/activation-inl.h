// Activations of 16 values at a time.
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

}  // namespace
}  // namespace gitfast::cpu
