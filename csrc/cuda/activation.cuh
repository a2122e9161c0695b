// Activations of one float32, for the kernels that end with one.
#pragma once

#include "cuda/activation.h"
#include "cuda/platform.h"

namespace gitfast::cuda {

// By erfc, which has all its digits where 1 + erf would have lost them.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * erfcf(-0.707106781f * x); }

__device__ __forceinline__ float quick_gelu(float x) { return x / (1.0f + expf(-1.702f * x)); }

__device__ __forceinline__ float activate(Activation activation, float x) {
  if (activation == Activation::gelu) return gelu(x);
  if (activation == Activation::quick_gelu) return quick_gelu(x);
  return x;
}

}  // namespace gitfast::cuda
