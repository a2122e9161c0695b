// Online softmax, in base 2: sums over the keys seen so far, relative to their peak (Milakov and Gimelshein, 2018).
#pragma once

#include <cmath>

#include "cuda/platform.h"

namespace gitfast::cuda {

// The peak and the total of a softmax over some keys. Begins with no key.
struct OnlineSoftmax {
  float peak = -INFINITY;  // of the scores so far
  float total = 0;         // of the weights so far, relative to the peak

  // The weight of a score that is no higher than the peak.
  __device__ __forceinline__ float weight(float score) const { return exp2f(score - base(peak)); }

  // Raises the peak to `score` where that is higher. Returns the factor of all sums so far; `total` has it already.
  __device__ __forceinline__ float raise(float score) {
    const float top = fmaxf(peak, score), factor = exp2f(peak - base(top));
    peak = top;
    total *= factor;
    return factor;
  }

  // The factor of the sums of values in the result: 0 for a row that saw no key; NaN stays.
  __device__ __forceinline__ float normalise() const { return total > 0 ? 1.0f / total : total == 0 ? 0.0f : total; }

 private:
  static __device__ __forceinline__ float base(float peak) { return peak == -INFINITY ? 0.0f : peak; }  // no key yet
};

// The same with weighted sums of N columns of the values.
template <int N>
struct SoftmaxSums : OnlineSoftmax {
  float sums[N] = {};

  __device__ __forceinline__ void rescale(float score) {
    const float factor = raise(score);
    for (float& sum : sums) sum *= factor;
  }

  // Adds what was found over other keys.
  __device__ __forceinline__ void merge(const SoftmaxSums& other) {
    rescale(other.peak);
    const float factor = weight(other.peak);
    total = fmaf(other.total, factor, total);
    for (int i = 0; i < N; ++i) sums[i] = fmaf(other.sums[i], factor, sums[i]);
  }
};

// A state in memory: peak, total, two floats unused, and sums of values.
constexpr int kStateHead = 4;

// N of its columns, from `column` on, which is a multiple of N; 4 or 1.
template <int N>
__device__ __forceinline__ SoftmaxSums<N> load_state(const float* state, int column) {
  SoftmaxSums<N> part;
  const auto head = load_vec(reinterpret_cast<const Vec<float, 2>*>(state));
  const auto sums = load_vec(reinterpret_cast<const Vec<float, N>*>(state + kStateHead + column));
  part.peak = head.at[0];
  part.total = head.at[1];
  for (int i = 0; i < N; ++i) part.sums[i] = sums.at[i];
  return part;
}

}  // namespace gitfast::cuda
