// Functions of full warps.
#pragma once

#include "cuda/platform.h"

namespace gitfast::cuda {

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// The same sum in every lane.
template <class Number>
__device__ __forceinline__ Number sum_of_warp(Number x) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

}  // namespace gitfast::cuda
