// The product of up to 16 rows and some columns of a tiled weight, by one block: what kernels of few rows begin with.
#pragma once

#include <cstring>

#include "cuda/ptx.h"
#include "cuda/tiled_weight.cuh"

namespace gitfast::cuda {

constexpr int kProductThreads = kProductWarps * kWarpSize;
constexpr int kProductRows = 16;
constexpr int kTileSums = kProductRows * kTileColumns;
constexpr size_t kStageBytes = 64 * 1024;  // of x in shared memory, unless one round of weights takes more

// The block's share of x: rows [0, count) of `depth` elements.
template <class T>
struct InputRows {
  const T* data;
  int64_t stride;
  int count;
};

// Steps along the depth whose weights each warp has on its way.
template <int kTiles>
constexpr int kStepsAhead = kTiles == 1 ? 6 : 3;

// How the rows of x stand in shared memory: a part of the depth at a time, as much as there is room for, in whole
// rounds of kStepsAhead steps of every warp.
template <class W, int kTiles>
struct StageLayout {
  static constexpr int kDepth = 64 / sizeof(W);                       // elements of a step
  static constexpr int kRound = kStepsAhead<kTiles> * kProductWarps;  // steps

  int steps;       // of a part
  int row_stride;  // elements: rows of a warp's load start in different halves of the banks
  size_t bytes;

  __host__ __device__ StageLayout(int64_t rows, int64_t depth) {
    const int64_t count = rows < kProductRows ? rows : kProductRows;
    const int all = static_cast<int>(depth / kDepth), step_bytes = 2 * kDepth;
    const auto rounds = static_cast<int>(static_cast<int64_t>(kStageBytes) / (count * step_bytes * kRound));
    steps = (rounds > 1 ? rounds : 1) * kRound;
    if (steps > all) steps = all;
    const int row_bytes = steps * step_bytes;
    row_stride = (row_bytes % 128 == 0 ? row_bytes + 64 : row_bytes) / 2;
    bytes = static_cast<size_t>(count) * row_stride * 2;
  }
};

// Tiles first, first + 1, ... of 8 columns each, kTiles at most, none from `tiles` on. The first weights are on their
// way when this is constructed; they depend on no kernel.
//
// An element's index along the depth is of no consequence as long as both factors agree: where m16n8k16 wants elements
// 2t, 2t + 1, 2t + 8, 2t + 9 from lane t of four, it gets neighbours of those 16 bytes which the lane has.
template <class T, class W, int kTiles>
class TileProduct {
 public:
  using Layout = StageLayout<W, kTiles>;

  __device__ __forceinline__ TileProduct(const TiledWeight& weight, int64_t first, int64_t tiles)
      : steps_(static_cast<int>(weight.depth) / Layout::kDepth),
        columns_(tiles - first < kTiles ? static_cast<int>(tiles - first) : kTiles),
        chunks_(static_cast<const WeightChunk*>(weight.data) + first * steps_ * kWarpSize + lane()) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (warp() + i * kProductWarps < steps_) load(warp() + i * kProductWarps, ahead_[i]);
  }

  // After the previous kernel is waited for. Adds up this warp's share of the depth. x goes through `stage`, of the
  // layout's size; where it is `staged`, and one part holds all of it, it is there already. Waits for the block
  // between parts and before the first.
  __device__ __forceinline__ void multiply(const InputRows<T>& x, const Layout& layout, T* stage, bool staged = false) {
    count_ = x.count;
    for (int begin = 0; begin < steps_; begin += layout.steps) {
      const int end = begin + layout.steps < steps_ ? begin + layout.steps : steps_;
      if (begin > 0) __syncthreads();  // before the last part is overwritten
      if (!staged || layout.steps < steps_) {
        stage_rows(x, layout, stage, begin, end);
        __syncthreads();
      }
      multiply_part(stage, layout.row_stride, begin, end);
    }
  }

  // The same of x that `prepare` changes, staged as a whole, before it is multiplied. One part must hold it.
  template <class Prepare>
  __device__ __forceinline__ void multiply_prepared(const InputRows<T>& x, const Layout& layout, T* stage,
                                                    Prepare prepare) {
    count_ = x.count;
    stage_rows(x, layout, stage, 0, steps_);
    __syncthreads();
    prepare();
    multiply_part(stage, layout.row_stride, 0, steps_);
  }

  // Leaves the sums of every warp in `partial`, [kProductWarps][kTiles][16][8], and waits for the block.
  __device__ __forceinline__ void store(float* partial) const {
    const int g = lane() / 4, t = lane() % 4;
    for (int n = 0; n < kTiles; ++n)
      for (int half = 0; half < 2; ++half) {
        const Vec<float, 2> pair{sums_[n][2 * half], sums_[n][2 * half + 1]};
        float* at = partial + (warp() * kTiles + n) * kTileSums + (g + half * 8) * kTileColumns + t * 2;
        store_vec(reinterpret_cast<Vec<float, 2>*>(at), pair);
      }
    __syncthreads();
  }

 private:
  static constexpr int kAhead = kStepsAhead<kTiles>;
  static constexpr int kChunk = 16 / sizeof(W);  // elements of a lane

  // Pairs of rows g and g + 8, for one step.
  struct Fragment {
    uint32_t upper[kChunk / 2], lower[kChunk / 2];
  };

  static __device__ __forceinline__ int warp() { return threadIdx.x / kWarpSize; }
  static __device__ __forceinline__ int lane() { return threadIdx.x % kWarpSize; }

  __device__ __forceinline__ void load(int step, WeightChunk (&to)[kTiles]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      if (n < columns_) to[n] = load_streaming(chunks_ + (int64_t{n} * steps_ + step) * kWarpSize);
  }

  __device__ __forceinline__ void stage_rows(const InputRows<T>& x, const Layout& layout, T* stage, int begin,
                                             int end) const {
    const int chunks = (end - begin) * Layout::kDepth / 8;  // of a row, 16 bytes each
    for (int i = threadIdx.x; i < x.count * chunks; i += kProductThreads) {
      const int row = i / chunks, column = i % chunks * 8;
      cp_async16_after_wait(stage + row * layout.row_stride + column,
                            x.data + row * x.stride + begin * Layout::kDepth + column);
    }
    cp_async_commit();
    cp_async_wait<0>();
  }

  // Rows beyond the last get its elements: nobody reads their sums.
  __device__ __forceinline__ Fragment fragment(const T* stage, int row_stride, int step) const {
    const int g = lane() / 4, t = lane() % 4;
    const T* from = stage + step * Layout::kDepth + t * kChunk;
    Fragment a{};
    const auto fetch = [&](int row, uint32_t* to) {
      const T* at = from + (row < count_ ? row : count_ - 1) * row_stride;
#pragma unroll
      for (int part = 0; part < kChunk; part += 8) {
        const auto eight = load_vec(reinterpret_cast<const Vec<T, 8>*>(at + part));
        memcpy(to + part / 2, &eight, sizeof eight);
      }
    };
    fetch(g, a.upper);
    if (count_ > 8) fetch(g + 8, a.lower);
    return a;
  }

  __device__ __forceinline__ void multiply_part(const T* stage, int row_stride, int begin, int end) {
    int step = begin + warp();
    if (step >= end) return;
    Fragment next = fragment(stage, row_stride, step - begin);
    while (step < end) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (step >= end) break;
        const Fragment a = next;
        if (step + kProductWarps < end) next = fragment(stage, row_stride, step + kProductWarps - begin);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          if (n >= columns_) break;
#pragma unroll
          for (int k = 0; k < kChunk / 2; k += 2) {
            const uint32_t left[4] = {a.upper[k], a.lower[k], a.upper[k + 1], a.lower[k + 1]};
            mma_m16n8k16<T>(sums_[n], left, weight_pair<T, W>(ahead_[i][n], k), weight_pair<T, W>(ahead_[i][n], k + 1));
          }
        }
        if (step + kAhead * kProductWarps < steps_) load(step + kAhead * kProductWarps, ahead_[i]);
        step += kProductWarps;
      }
    }
  }

  const int steps_, columns_;  // along the whole depth; tiles that exist
  const WeightChunk* chunks_;
  int count_ = 0;
  WeightChunk ahead_[kAhead][kTiles];
  float sums_[kTiles][4] = {};
};

// The whole sum of one element of what TileProduct::store left.
template <int kTiles>
__device__ __forceinline__ float whole_sum(const float* partial, int row, int column) {
  const float* at = partial + column / kTileColumns * kTileSums + row * kTileColumns + column % kTileColumns;
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kProductWarps; ++warp) sum += at[warp * kTiles * kTileSums];
  return sum;
}

}  // namespace gitfast::cuda
