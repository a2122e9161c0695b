// Residual, bias and LayerNorm: kernel and launch.
#include "cuda/norm.cuh"
#include "cuda/norm.h"
#include "cuda/ptx.h"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"

namespace gitfast::cuda {
namespace {

constexpr int kMaxWarps = 8;

// The sum over all threads of the block, in an order that depends on nothing but the block's size.
// `partial` holds kMaxWarps floats and must not be reused without a barrier.
__device__ float block_sum(float value, float* partial) {
  value = sum_of_warp(value);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarpSize; ++warp) sum += partial[warp];
  return sum;
}

// The row of a table of `rows` that this block's row reads; negative where the index lies outside.
__device__ int64_t source_row(const int32_t* index, int64_t rows) {
  if (!index) return blockIdx.x;
  const int64_t row = load_after_wait(index + blockIdx.x);
  return row < rows ? row : -1;
}

template <class T, int N>
__device__ __forceinline__ void add(float (&values)[N], const Vec<T, N>& terms) {
  for (int j = 0; j < N; ++j) values[j] += to_float(terms.at[j]);
}

// One block per row. Thread t holds chunks t, t + blockDim.x, ... of N elements, `kChunks` at most, in registers: the
// row is read once, and the variance is taken about the mean. Bias, gamma and beta, which no kernel writes, are on
// their way before the previous kernel has ended.
template <class T, int N, int kChunks>
__global__ void add_layer_norm_kernel(AddLayerNorm args) {
  GITFAST_SHARED(float, partial);  // [2][kMaxWarps]: one half for each sum, so that no barrier lies between them
  using Chunk = Vec<T, N>;
  let_next_kernel_start();
  const int64_t row = blockIdx.x;
  const int chunks = static_cast<int>(args.width) / N;
  const Chunk* bias = static_cast<const Chunk*>(args.bias);
  const Chunk* gamma = static_cast<const Chunk*>(args.gamma);
  const Chunk* beta = static_cast<const Chunk*>(args.beta);
  float values[kChunks][N] = {};
  Chunk scales[kChunks], shifts[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    if (chunk >= chunks) break;
    if (bias) add(values[i], load_vec(bias + chunk));
    scales[i] = load_vec(gamma + chunk);
    shifts[i] = load_vec(beta + chunk);
  }
  wait_for_previous_kernel();

  const int64_t x_row = source_row(args.x_index, args.x_rows);
  const int64_t residual_row = source_row(args.residual_index, args.residual_rows);
  const bool exists = x_row >= 0 && residual_row >= 0;
  const Chunk* x = reinterpret_cast<const Chunk*>(static_cast<const T*>(args.x) + (exists ? x_row * args.x_stride : 0));
  const Chunk* residual = reinterpret_cast<const Chunk*>(
      static_cast<const T*>(args.residual) + (exists && args.residual ? residual_row * args.residual_stride : 0));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    if (chunk >= chunks) break;
    add(values[i], load_after_wait(x + chunk));
    if (residual) add(values[i], load_after_wait(residual + chunk));
    for (int j = 0; j < N; ++j) sum += values[i][j];
  }
  const float mean = block_sum(sum, partial) / args.width;

  float squares = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (threadIdx.x + i * blockDim.x >= static_cast<unsigned>(chunks)) break;
    for (int j = 0; j < N; ++j) squares = add_square(squares, values[i][j] - mean);
  }
  const float eps = exists ? args.eps : NAN;
  const float scale = norm_scale(block_sum(squares, partial + kMaxWarps) / args.width, eps);

  Chunk* out = reinterpret_cast<Chunk*>(static_cast<T*>(args.out) + row * args.out_stride);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    if (chunk >= chunks) break;
    Chunk result;
    for (int j = 0; j < N; ++j)
      result.at[j] =
          from_float<T>(norm_element(values[i][j], mean, scale, to_float(scales[i].at[j]), to_float(shifts[i].at[j])));
    store_vec(out + chunk, result);
  }
}

template <class T, int N, int kChunks>
void launch(const AddLayerNorm& args, cudaStream_t stream) {
  const int64_t threads = (args.width / N + kChunks - 1) / kChunks;
  const int64_t warps = (threads + kWarpSize - 1) / kWarpSize;
  const Launch launch{"add_layer_norm_kernel",       dim3(args.rows), dim3(warps * kWarpSize),
                      2 * kMaxWarps * sizeof(float), stream,          args.overlap};
  launch_kernel(launch, add_layer_norm_kernel<T, N, kChunks>, args);
}

template <class T>
void dispatch(const AddLayerNorm& args, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  constexpr int kMost = kMaxNormWidth / (kMaxWarps * kWarpSize);  // elements per thread of the widest row
  const int64_t size = sizeof(T);
  const bool vectors = args.width % kVector == 0 && aligned(args.x, args.x_stride * size, 16) &&
                       aligned(args.residual, args.residual_stride * size, 16) &&
                       aligned(args.out, args.out_stride * size, 16) && aligned(args.bias, 0, 16) &&
                       aligned(args.gamma, 0, 16) && aligned(args.beta, 0, 16);
  if (!vectors) return launch<T, 1, kMost>(args, stream);
  if (args.width <= kVector * kMaxWarps * kWarpSize) return launch<T, kVector, 1>(args, stream);
  launch<T, kVector, kMost / kVector>(args, stream);
}

}  // namespace

void add_layer_norm(const AddLayerNorm& args, CUstream_st* stream) {
  for_rows(args, kMaxNormWidth, [&](auto type) { dispatch<decltype(type)>(args, stream); });
}

}  // namespace gitfast::cuda
