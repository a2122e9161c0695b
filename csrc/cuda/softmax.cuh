// Softmax in parts: a part's sums are relative to its own peak, in base 2.
#pragma once

#include <cmath>

#include "cuda/platform.h"

namespace gitfast::cuda {

// The larger peak of two parts, and what the sums of each are multiplied by to be relative to it.
struct CommonPeak {
  float peak, first, second;
};

__device__ __forceinline__ CommonPeak common_peak(float first, float second) {
  const float peak = fmaxf(first, second), base = peak == -INFINITY ? 0.0f : peak;  // no key yet
  return {peak, exp2f(first - base), exp2f(second - base)};
}

}  // namespace gitfast::cuda
