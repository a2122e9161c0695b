// Products of up to 8 rows in shared memory with tiled weights that are always on their way.
//
// Every thread copies the chunks of the weight that it will multiply itself to stages of its own of a ring in shared
// memory, in the order of use and as far ahead as the ring is long: across the ends of products, and across whatever
// the block waits for in between. Nobody else reads these stages, so no barrier guards them.
#pragma once

#include <cstring>

#include "cuda/ptx.h"
#include "cuda/tiled_weight.cuh"

namespace gitfast::cuda {

constexpr int kStreamThreads = kProductWarps * kWarpSize;
constexpr int kStreamRows = 8;
constexpr int kStreamPass = 4;  // tiles that one warp sums at once
constexpr int kSumsOfTile = kStreamRows * kTileColumns;

// Some tiles of a tiled weight over some of its depth: tiles `first`, `first + 1`, ... of a list that consists of runs
// of 2^run_bits neighbours, `stride` apart from `base` on.
struct Product {
  const TiledWeight* weight;
  int pitch;              // steps along the whole depth
  int first_step, steps;  // those of this product
  int first, count;
  int run_bits, stride, base;

  // Where tile j of the list is in the weight.
  __device__ __forceinline__ int tile(int j) const {
    return (j >> run_bits) * stride + base + (j & ((1 << run_bits) - 1));
  }
  // The column of the weight for column `column` of this product's tiles side by side.
  __device__ __forceinline__ int column(int column) const {
    return tile(first + column / kTileColumns) * kTileColumns + column % kTileColumns;
  }
};

// A warp's part of a product: every `step_stride`-th step of every `tile_stride`-th tile. As many warps as can share
// the depth do; the others share the tiles. By the product's shape alone.
struct WarpShare {
  int step, step_stride, tile, tile_stride, tiles, steps;

  __device__ __forceinline__ explicit WarpShare(const Product& product) {
    const int warp = threadIdx.x / kWarpSize;
    step_stride = kProductWarps;
    while (step_stride > product.steps) step_stride /= 2;
    if (step_stride < 1) step_stride = 1;
    tile_stride = kProductWarps / step_stride;
    step = warp % step_stride;
    tile = warp / step_stride;
    steps = (product.steps - step + step_stride - 1) / step_stride;
    tiles = (product.count - tile + tile_stride - 1) / tile_stride;
    if (tiles < 0) tiles = 0;
  }
};

// Program: Product operator()(int) gives products [0, end) in order. The ring has kStages stages of every thread, 4 KB
// each.
template <class Program, int kStages>
class WeightStream {
 public:
  __device__ __forceinline__ WeightStream(WeightChunk* ring, const Program& program, int end)
      : ring_(ring + threadIdx.x), program_(program), end_(end), product_(program(0)), share_(product_) {
    begin_product();
    skip_empty();
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) fetch();
  }

  // Waits for the next chunks of this thread, as many as a pass has tiles.
  __device__ __forceinline__ void wait() { cp_async_wait<kStages - kStreamPass>(); }

  // The next chunk, which is waited for.
  __device__ __forceinline__ WeightChunk take() {
    const WeightChunk chunk = ring_[taken_ * kStreamThreads];
    taken_ = (taken_ + 1) % kStages;
    return chunk;
  }

  // For every chunk that was taken and is no longer needed: sets the one behind all that are on their way on its way
  // too. A group of copies each, be it empty: wait() counts them.
  __device__ __forceinline__ void fetch() {
    if (number_ < end_) {
      const int j = product_.first + share_.tile + tile_ * share_.tile_stride;
      cp_async16(ring_ + fetched_ * kStreamThreads, chunks_ + product_.tile(j) * pitch_ + step_, true);
      advance();
    }
    cp_async_commit();
    fetched_ = (fetched_ + 1) % kStages;
  }

  // Before the block ends.
  __device__ __forceinline__ void drain() { cp_async_wait<0>(); }

 private:
  // Tiles of a pass, then the next step, then the next pass: the order in which multiply_rows() takes them.
  __device__ __forceinline__ void advance() {
    ++tile_;
    if (tile_ < share_.tiles && tile_ < pass_ + kStreamPass) return;
    tile_ = pass_;
    step_ += share_.step_stride * kWarpSize;
    if (step_ < end_of_steps_) return;
    step_ = 0;
    tile_ = pass_ += kStreamPass;
    if (pass_ < share_.tiles) return;
    next_product();
    skip_empty();
  }
  __device__ __forceinline__ void skip_empty() {
    while (number_ < end_ && (share_.tiles == 0 || share_.steps == 0)) next_product();
  }
  __device__ __forceinline__ void next_product() {
    if (++number_ == end_) return;
    product_ = program_(number_);
    share_ = WarpShare(product_);
    begin_product();
  }
  // Computes what all chunks of this thread in a product share, so that fetch() has little left to do.
  __device__ __forceinline__ void begin_product() {
    tile_ = pass_ = step_ = 0;
    pitch_ = product_.pitch * kWarpSize;
    end_of_steps_ = share_.steps * share_.step_stride * kWarpSize;
    chunks_ = static_cast<const WeightChunk*>(product_.weight->data) + (product_.first_step + share_.step) * kWarpSize +
              threadIdx.x % kWarpSize;
  }

  WeightChunk* ring_;  // of this thread
  Program program_;
  int end_;
  int number_ = 0;  // of the product whose chunks are fetched
  Product product_;
  WarpShare share_;
  const WeightChunk* chunks_ = nullptr;  // of this thread in tile 0, from its first step on
  int pitch_ = 0, end_of_steps_ = 0;     // chunks between tiles, and those of all steps
  int pass_ = 0, tile_ = 0, step_ = 0;   // step_: chunks from the first step on
  int fetched_ = 0, taken_ = 0;
};

// Leaves the sums in `partial`, [step_stride][product.count][8][8], and waits for the block. x: 8 rows in shared
// memory, the product's first step at their beginning.
template <class T, class W, class Stream>
__device__ __forceinline__ void multiply_rows(Stream& stream, const Product& product, const T* x, int x_stride,
                                              float* partial) {
  constexpr int kChunk = 16 / sizeof(W), kDepth = 4 * kChunk;  // elements of a lane, and of a step along the depth
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const WarpShare share(product);
  const T* row = x + g * x_stride + t * kChunk;
  for (int pass = 0; pass < share.tiles; pass += kStreamPass) {
    float sums[kStreamPass][4] = {};
    for (int i = 0; i < share.steps; ++i) {
      uint32_t a[kChunk / 2];  // pairs of row g
#pragma unroll
      for (int part = 0; part < kChunk; part += 8) {
        const auto eight =
            load_vec(reinterpret_cast<const Vec<T, 8>*>(row + (share.step + i * share.step_stride) * kDepth + part));
        memcpy(a + part / 2, &eight, sizeof eight);
      }
      const int tiles = share.tiles - pass < kStreamPass ? share.tiles - pass : kStreamPass;
      stream.wait();
#pragma unroll
      for (int n = 0; n < kStreamPass; ++n) {
        if (n >= tiles) break;
        const WeightChunk chunk = stream.take();
#pragma unroll
        for (int k = 0; k < kChunk / 2; k += 2) {
          const uint32_t left[4] = {a[k], 0, a[k + 1], 0};
          mma_m16n8k16<T>(sums[n], left, weight_pair<T, W>(chunk, k), weight_pair<T, W>(chunk, k + 1));
        }
      }
#pragma unroll 1
      for (int n = 0; n < tiles; ++n) stream.fetch();
    }
#pragma unroll
    for (int n = 0; n < kStreamPass; ++n) {
      if (pass + n >= share.tiles) break;
      const int tile = share.tile + (pass + n) * share.tile_stride;
      float* at = partial + (share.step * product.count + tile) * kSumsOfTile + g * kTileColumns + t * 2;
      store_vec(reinterpret_cast<Vec<float, 2>*>(at), {sums[n][0], sums[n][1]});
    }
  }
  __syncthreads();
}

// The whole sum of a column (of the product's tiles, side by side) and row of what multiply_rows left.
__device__ __forceinline__ float whole_sum_of(const Product& product, const float* partial, int row, int column) {
  const int shares = WarpShare(product).step_stride;
  const float* at = partial + column / kTileColumns * kSumsOfTile + row * kTileColumns + column % kTileColumns;
  float sum = 0;
  for (int i = 0; i < shares; ++i) sum += at[i * product.count * kSumsOfTile];
  return sum;
}

}  // namespace gitfast::cuda
