// A product of matrices by asynchronous copies and tensor cores, to test their emulation.
#include "cuda/ptx.h"
#include "tests/tile_product.h"

namespace gitfast::cuda {
namespace {

constexpr int kTileM = 32, kTileN = 16, kTileK = 32;
constexpr int kThreads = kTileM / 16 * kWarpSize;              // a warp has 16 rows
constexpr int kStrideA = kTileK + 8, kStrideB = kTileN + 8;    // in elements: rows start in different banks
constexpr int kStage = kTileM * kStrideA + kTileK * kStrideB;  // elements of a pair of tiles

// Copies rows x columns elements; those beyond the limits are zeros.
template <class T>
__device__ void load_tile(T* tile, int stride, int rows, int columns, const T* matrix, int width, int row_limit,
                          int column_limit) {
  for (int i = threadIdx.x; i < rows * columns / 8; i += blockDim.x) {
    const int row = i / (columns / 8), column = i % (columns / 8) * 8;
    const bool valid = row < row_limit && column < column_limit;
    const T* source = matrix + int64_t{row} * width + column;
    cp_async16(tile + row * stride + column, valid ? source : matrix, valid);
  }
}

// One block per tile of `out`; the next tiles of a and b are on their way while these are multiplied.
template <class T>
__global__ void tile_product_kernel(TileProduct args) {
  GITFAST_SHARED(T, stages);  // [2][kStage]
  const int M = args.M, N = args.N, K = args.K;
  const int row = blockIdx.x * kTileM, column = blockIdx.y * kTileN;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const auto load = [&](int step) {
    T* stage = stages + step % 2 * kStage;
    const int k = step * kTileK;
    const T* a = static_cast<const T*>(args.a) + int64_t{row} * K + k;
    const T* b = static_cast<const T*>(args.b) + int64_t{k} * N + column;
    load_tile(stage, kStrideA, kTileM, kTileK, a, K, M - row, K - k);
    load_tile(stage + kTileM * kStrideA, kStrideB, kTileK, kTileN, b, N, K - k, N - column);
  };

  float sums[2][4] = {};
  const int steps = (K + kTileK - 1) / kTileK;
  load(0);
  cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const T* a = stages + step % 2 * kStage + (warp * 16 + lane % 16) * kStrideA + lane / 16 * 8;
    const T* b = stages + step % 2 * kStage + kTileM * kStrideA + lane % 16 * kStrideB + lane / 16 * 8;
    for (int k = 0; k < kTileK; k += 16) {
      uint32_t left[4], right[4];
      ldmatrix_x4(left, a + k);
      ldmatrix_x4_trans(right, b + k * kStrideB);
      mma_m16n8k16<T>(sums[0], left, right[0], right[1]);
      mma_m16n8k16<T>(sums[1], left, right[2], right[3]);
    }
    __syncthreads();  // before the next copies land in these tiles
  }

  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i) {
      const int m = row + warp * 16 + lane / 4 + i / 2 * 8;
      const int at = column + n * 8 + lane % 4 * 2 + i % 2;
      if (m < M && at < N) args.out[int64_t{m} * N + at] = sums[n][i];
    }
}

template <class T>
void launch(const TileProduct& args, cudaStream_t stream) {
  const dim3 grid((args.M + kTileM - 1) / kTileM, (args.N + kTileN - 1) / kTileN);
  launch_kernel({"tile_product_kernel", grid, dim3(kThreads), 2 * kStage * sizeof(T), stream}, tile_product_kernel<T>,
                args);
}

}  // namespace

void tile_product(const TileProduct& args, CUstream_st* stream) {
  args.dtype == DType::f16 ? launch<__half>(args, stream) : launch<__nv_bfloat16>(args, stream);
}

}  // namespace gitfast::cuda
