// The product of up to 16 rows and some columns of a packed weight, by one block: what kernels of few rows begin with.
#pragma once

#include <cstring>

#include "cuda/ptx.h"
#include "cuda/tiled_weight.cuh"

namespace gitfast::cuda {

constexpr int kProductRows = 16;
constexpr int kTileSums = kProductRows * kTileColumns;

// The block's share of x: rows [0, count) of `depth` elements.
template <class T>
struct InputRows {
  const T* data;
  int64_t stride;
  int count;
};

// Tiles first, first + 1, ... of 8 columns each, kTiles at most, none from `tiles` on. Leaves the sums of every warp in
// `partial`, [kProductWarps][kTiles][16][8], and waits for the block.
//
// An element's place along the depth is of no consequence as long as both factors agree: where m16n8k16 wants elements
// 2t, 2t + 1, 2t + 8, 2t + 9 from lane t of four, it gets neighbours of those 16 bytes which the lane has.
template <class T, class W, int kTiles>
__device__ __forceinline__ void multiply(const InputRows<T>& x, const TiledWeight& weight, int64_t first, int64_t tiles,
                                         float* partial) {
  constexpr int kChunk = 16 / sizeof(W), kDepth = 4 * kChunk;  // elements of a lane, and of a step along the depth
  constexpr int kAhead = kTiles == 1 ? 6 : 3;                  // steps whose weights are on their way
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const int steps = static_cast<int>(weight.depth) / kDepth;
  const auto* chunks = static_cast<const WeightChunk*>(weight.data) + first * steps * kWarpSize + lane;

  WeightChunk ahead[kAhead][kTiles];
  const auto load = [&](int step, WeightChunk(&to)[kTiles]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      if (first + n < tiles) to[n] = load_streaming(chunks + (int64_t{n} * steps + step) * kWarpSize);
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (warp + i * kProductWarps < steps) load(warp + i * kProductWarps, ahead[i]);
  wait_for_previous_kernel();

  float sums[kTiles][4] = {};
  const T* upper = x.data + g * x.stride + t * kChunk;
  const T* lower = upper + 8 * x.stride;
  for (int begin = warp; begin < steps; begin += kAhead * kProductWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = begin + i * kProductWarps;
      if (step >= steps) break;
      uint32_t a[2][kChunk / 2] = {};  // pairs of rows g and g + 8
#pragma unroll
      for (int part = 0; part < kChunk; part += 8) {
        const auto fetch = [&](const T* row, uint32_t* to) {
          const auto eight = load_after_wait(reinterpret_cast<const Vec<T, 8>*>(row + step * kDepth + part));
          memcpy(to + part / 2, &eight, sizeof eight);
        };
        if (g < x.count) fetch(upper, a[0]);
        if (g + 8 < x.count) fetch(lower, a[1]);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if (first + n >= tiles) break;
#pragma unroll
        for (int k = 0; k < kChunk / 2; k += 2) {
          const uint32_t left[4] = {a[0][k], a[1][k], a[0][k + 1], a[1][k + 1]};
          mma_m16n8k16<T>(sums[n], left, weight_pair<T, W>(ahead[i][n], k), weight_pair<T, W>(ahead[i][n], k + 1));
        }
      }
      if (step + kAhead * kProductWarps < steps) load(step + kAhead * kProductWarps, ahead[i]);
    }
  }
  for (int n = 0; n < kTiles; ++n)
    for (int half = 0; half < 2; ++half) {
      const Vec<float, 2> pair{sums[n][2 * half], sums[n][2 * half + 1]};
      float* at = partial + (warp * kTiles + n) * kTileSums + (g + half * 8) * kTileColumns + t * 2;
      store_vec(reinterpret_cast<Vec<float, 2>*>(at), pair);
    }
  __syncthreads();
}

// The whole sum of one element of what multiply left.
template <int kTiles>
__device__ __forceinline__ float whole_sum(const float* partial, int row, int column) {
  const float* at = partial + column / kTileColumns * kTileSums + row * kTileColumns + column % kTileColumns;
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kProductWarps; ++warp) sum += at[warp * kTiles * kTileSums];
  return sum;
}

}  // namespace gitfast::cuda
