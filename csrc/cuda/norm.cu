#include "cuda/norm.h"
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

// Which row of a table of `rows` stands in this block's row; negative where the index lies outside.
__device__ int64_t source_row(const int32_t* index, int64_t rows) {
  if (!index) return blockIdx.x;
  const int64_t row = index[blockIdx.x];
  return row < rows ? row : -1;
}

// One block per row. Thread t holds chunks t, t + blockDim.x, ... of N elements, `kChunks` at most, in registers: the
// row is read once, and the variance is taken about the mean.
template <class T, int N, int kChunks>
__global__ void add_layer_norm_kernel(AddLayerNorm args) {
  GITFAST_SHARED(float, partial);  // [2][kMaxWarps]: one half for each sum, so that no barrier lies between them
  using Chunk = Vec<T, N>;
  const int64_t row = blockIdx.x;
  const int chunks = static_cast<int>(args.width) / N;
  const int64_t x_row = source_row(args.x_index, args.x_rows);
  const int64_t residual_row = source_row(args.residual_index, args.residual_rows);
  const bool exists = x_row >= 0 && residual_row >= 0;
  const Chunk* x = reinterpret_cast<const Chunk*>(static_cast<const T*>(args.x) + (exists ? x_row * args.x_stride : 0));
  const Chunk* residual = reinterpret_cast<const Chunk*>(
      static_cast<const T*>(args.residual) + (exists && args.residual ? residual_row * args.residual_stride : 0));
  const Chunk* bias = static_cast<const Chunk*>(args.bias);

  float values[kChunks][N];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    if (chunk >= chunks) break;
    const Chunk loaded = load_vec(x + chunk);
    for (int j = 0; j < N; ++j) values[i][j] = to_float(loaded.at[j]);
    if (bias) {
      const Chunk added = load_vec(bias + chunk);
      for (int j = 0; j < N; ++j) values[i][j] += to_float(added.at[j]);
    }
    if (residual) {
      const Chunk added = load_vec(residual + chunk);
      for (int j = 0; j < N; ++j) values[i][j] += to_float(added.at[j]);
    }
    for (int j = 0; j < N; ++j) sum += values[i][j];
  }
  const float mean = block_sum(sum, partial) / args.width;

  float squares = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (threadIdx.x + i * blockDim.x >= static_cast<unsigned>(chunks)) break;
    for (int j = 0; j < N; ++j) squares += (values[i][j] - mean) * (values[i][j] - mean);
  }
  const float eps = exists ? args.eps : NAN;
  const float scale = 1.0f / sqrtf(block_sum(squares, partial + kMaxWarps) / args.width + eps);

  const Chunk* gamma = static_cast<const Chunk*>(args.gamma);
  const Chunk* beta = static_cast<const Chunk*>(args.beta);
  Chunk* out = reinterpret_cast<Chunk*>(static_cast<T*>(args.out) + row * args.out_stride);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    if (chunk >= chunks) break;
    const Chunk weight = load_vec(gamma + chunk), shift = load_vec(beta + chunk);
    Chunk result;
    for (int j = 0; j < N; ++j)
      result.at[j] = from_float<T>((values[i][j] - mean) * scale * to_float(weight.at[j]) + to_float(shift.at[j]));
    store_vec(out + chunk, result);
  }
}

template <class T, int N, int kChunks>
void launch(const AddLayerNorm& args, cudaStream_t stream) {
  const int64_t threads = (args.width / N + kChunks - 1) / kChunks;
  const int64_t warps = (threads + kWarpSize - 1) / kWarpSize;
  const Launch launch{"add_layer_norm_kernel", dim3(args.rows), dim3(warps * kWarpSize), 2 * kMaxWarps * sizeof(float),
                      stream};
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
  if (args.width < 1 || args.width > kMaxNormWidth)
    throw Error("x: expected rows of 1 to " + std::to_string(kMaxNormWidth) + " elements, got " +
                std::to_string(args.width));
  if (args.rows > INT32_MAX) throw Error("x: too many rows: " + std::to_string(args.rows));
  if (args.rows == 0) return;
  const DeviceScope device(args.device);
  if (args.dtype == DType::f32) return dispatch<float>(args, stream);
  if (args.dtype == DType::f16) return dispatch<__half>(args, stream);
  if (args.dtype == DType::bf16) return dispatch<__nv_bfloat16>(args, stream);
  throw Error(std::string("x: expected float32, float16 or bfloat16, got ") + dtype_name(args.dtype));
}

}  // namespace gitfast::cuda
