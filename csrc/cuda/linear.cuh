// The product of up to 16 rows and some columns of a packed weight, by one block: what kernels of few rows begin with.
#pragma once

#include <cuda_fp8.h>

#include <cstring>
#include <type_traits>

#include "cuda/linear.h"
#include "cuda/platform.h"
#include "cuda/ptx.h"

namespace gitfast::cuda {

constexpr int kProductWarps = 8;  // each takes every eighth step along the depth, whatever the shape
constexpr int kProductRows = 16, kTileColumns = 8;
constexpr int kTileSums = kProductRows * kTileColumns;

struct Float8 {  // e4m3
  uint8_t bits;
};

// What one lane loads at once: neighbours of one row of the weight. Bytes taken apart would fill a register each.
using WeightChunk = Vec<uint32_t, 4>;

// Elements 2 i and 2 i + 1 of a chunk of W, as tensor cores take them. Exact: T holds all values of 8 bits.
template <class T, class W>
__device__ __forceinline__ uint32_t weight_pair(const WeightChunk& chunk, int i) {
  if constexpr (std::is_same_v<T, W>) return chunk.at[i];
  const auto two = static_cast<uint16_t>(chunk.at[i / 2] >> i % 2 * 16);
  if constexpr (std::is_same_v<W, int8_t>) return pair_of<T>(static_cast<int8_t>(two), static_cast<int8_t>(two >> 8));
  const __half2 halves(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3));
  return pair_of<T>(__low2float(halves), __high2float(halves));
}

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
__device__ __forceinline__ void multiply(const InputRows<T>& x, const PackedWeight& weight, int64_t first,
                                         int64_t tiles, float* partial) {
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

// Throws Error for a weight that multiply does not take with inputs of `dtype`.
inline void check_weight(const PackedWeight& weight, DType dtype) {
  if (dtype != DType::f16 && dtype != DType::bf16)
    throw Error(std::string("x: expected float16 or bfloat16, got ") + dtype_name(dtype));
  if (weight.dtype != dtype && weight.dtype != DType::i8 && weight.dtype != DType::u8)
    throw Error(std::string("weight: expected ") + dtype_name(dtype) + ", int8 or uint8 (float8_e4m3), got " +
                dtype_name(weight.dtype));
  const auto step = static_cast<int64_t>(64 / dtype_size(weight.dtype));
  if (weight.depth < 1 || weight.depth % step)
    throw Error("weight: expected a depth that is a multiple of " + std::to_string(step) + ", got " +
                std::to_string(weight.depth));
  if (weight.columns < 1) throw Error("weight: expected at least one column");
  if (!aligned(weight.data, 0, 16)) throw Error("weight: expected data at a multiple of 16 bytes");
  if (dtype_size(weight.dtype) == 1 && !weight.scales) throw Error("scales: a weight of 8 bits needs them");
}

inline int64_t tiles_of(const PackedWeight& weight) { return (weight.columns + kTileColumns - 1) / kTileColumns; }

template <class T, class W>
struct Types {
  using Input = T;
  using Weight = W;
};

// run(Types<T, W>()) with the types that a checked weight and `dtype` say.
template <class Run>
void with_types(DType dtype, DType weight, Run run) {
  const auto with_input = [&](auto input) {
    using T = decltype(input);
    if (weight == DType::i8) return run(Types<T, int8_t>());
    if (weight == DType::u8) return run(Types<T, Float8>());
    run(Types<T, T>());
  };
  dtype == DType::f16 ? with_input(__half()) : with_input(__nv_bfloat16());
}

}  // namespace gitfast::cuda
