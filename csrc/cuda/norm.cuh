// The arithmetic of LayerNorm that its kernels share, and a few rows in shared memory by one block.
//
// A row's values are the same to the bit whichever kernel normalises it. So multiply-adds are written as such: what a
// compiler contracts may differ from kernel to kernel.
#pragma once

#include "cuda/warp.cuh"

namespace gitfast::cuda {

__device__ __forceinline__ float add_square(float sum, float x) { return fmaf(x, x, sum); }

__device__ __forceinline__ float norm_scale(float variance, float eps) { return 1.0f / sqrtf(variance + eps); }

__device__ __forceinline__ float norm_element(float x, float mean, float scale, float gamma, float beta) {
  return fmaf((x - mean) * scale, gamma, beta);
}

constexpr int kNormParts = 4;  // of a row, each of 32 lanes with 8 elements
constexpr int kNormPart = kWarpSize * 8;

// Rows of T in shared memory, dense, their starts aligned to 16 bytes as all pointers here. Width: a multiple of 8,
// kNormParts * kNormPart at most.
template <class T>
struct NormRows {
  T* rows;
  int row_stride, count, width;
  const T *gamma, *beta;  // (width,), in shared memory
  float eps;
  float* partial;  // [2][count][kNormParts], in shared memory
};

// Normalises rows in place, by all warps of a block. copy(row, element, Vec<T, 8>) gets the results, too. Waits for the
// block.
//
// Sums are those of add_layer_norm_kernel, in its order: of 8 elements by a thread, of 32 threads by a warp, then one
// warp after another. Here a part of a row is what a warp has there.
template <class T, class Copy>
__device__ __forceinline__ void normalise_rows(const NormRows<T>& given, Copy copy) {
  using Chunk = Vec<T, 8>;
  const int lane = lane_of_warp(), warps = blockDim.x / kWarpSize;
  float *sums = given.partial, *squares = given.partial + given.count * kNormParts;
  // run(row, its number of 8 elements of this lane or none, their place in the partial sums)
  const auto for_parts = [&](auto run) {
#pragma unroll 1
    for (int i = threadIdx.x / kWarpSize; i < given.count * kNormParts; i += warps)
      run(i / kNormParts, i % kNormParts * kNormPart + lane * 8, i);
  };
  const auto chunk_at = [&](int row, int element) {
    return load_vec(reinterpret_cast<const Chunk*>(given.rows + row * given.row_stride + element));
  };
  const auto mean_of = [&](const float* parts, int row) {
    float sum = 0;
#pragma unroll
    for (int part = 0; part < kNormParts; ++part) sum += parts[row * kNormParts + part];
    return sum / given.width;
  };
  for_parts([&](int row, int element, int at) {
    float sum = 0;
    if (element < given.width) {
      const Chunk chunk = chunk_at(row, element);
      for (int j = 0; j < 8; ++j) sum += to_float(chunk.at[j]);
    }
    sum = sum_of_warp(sum);
    if (lane == 0) sums[at] = sum;
  });
  __syncthreads();
  for_parts([&](int row, int element, int at) {
    const float mean = mean_of(sums, row);
    float sum = 0;
    if (element < given.width) {
      const Chunk chunk = chunk_at(row, element);
      for (int j = 0; j < 8; ++j) sum = add_square(sum, to_float(chunk.at[j]) - mean);
    }
    sum = sum_of_warp(sum);
    if (lane == 0) squares[at] = sum;
  });
  __syncthreads();
  for_parts([&](int row, int element, int) {
    if (element >= given.width) return;
    const float mean = mean_of(sums, row), scale = norm_scale(mean_of(squares, row), given.eps);
    const Chunk chunk = chunk_at(row, element);
    const Chunk scales = load_vec(reinterpret_cast<const Chunk*>(given.gamma + element));
    const Chunk shifts = load_vec(reinterpret_cast<const Chunk*>(given.beta + element));
    Chunk result;
    for (int j = 0; j < 8; ++j)
      result.at[j] = from_float<T>(
          norm_element(to_float(chunk.at[j]), mean, scale, to_float(scales.at[j]), to_float(shifts.at[j])));
    store_vec(reinterpret_cast<Chunk*>(given.rows + row * given.row_stride + element), result);
    copy(row, element, result);
  });
  __syncthreads();
}

}  // namespace gitfast::cuda
