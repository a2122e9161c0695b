// Products of up to 8 rows in shared memory with tiled weights that are always on their way.
//
// Every thread copies the chunks of the weight that it will multiply itself to places of its own in a ring in shared
// memory, in the order of use and as far ahead as the ring is long: across the ends of products, and across whatever
// the block waits for in between. Nobody else reads these places, so no barrier guards them.
#pragma once

#include <cstring>

#include "cuda/ptx.h"
#include "cuda/tiled_weight.cuh"

namespace gitfast::cuda {

constexpr int kStreamThreads = kProductWarps * kWarpSize;
constexpr int kStreamRows = 8;
constexpr int kStreamPass = 4;  // tiles that one warp sums at once: a group of copies has a chunk of each
constexpr int kSumsOfTile = kStreamRows * kTileColumns;

// Some tiles of a tiled weight over some of its depth: tiles `first`, `first + 1`, ... of a list that consists of runs
// of 2^run_bits neighbours, `stride` apart from `base` on.
struct Product {
  const WeightChunk* data;  // of the weight, from this product's first step on
  const float* scales;      // of the weight's columns, or null
  const void* bias;         // likewise, of the rows' type
  int pitch;                // chunks from one tile to the next
  int steps;                // along the depth
  int columns;              // of the weight: its last tile may have fewer than 8
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
    static_assert(kProductWarps == 8, "at most three bits");
    const int bits = product.steps >= 8 ? 3 : product.steps >= 4 ? 2 : product.steps >= 2 ? 1 : 0;
    const int warp = threadIdx.x / kWarpSize;
    step_stride = 1 << bits;
    tile_stride = kProductWarps >> bits;
    step = warp & (step_stride - 1);
    tile = warp >> bits;
    steps = (product.steps - step + step_stride - 1) >> bits;
    tiles = (product.count - tile + tile_stride - 1) >> (3 - bits);
  }
};

// The weights of products [count] in shared memory, again and again, `total` products in all. The ring has kGroups
// groups of a chunk for each tile of a pass, of every thread: 16 KB each.
template <int kGroups>
class WeightStream {
 public:
  static constexpr size_t kBytes = sizeof(WeightChunk) * kGroups * kStreamPass * kStreamThreads;

  __device__ __forceinline__ WeightStream(WeightChunk* ring, const Product* products, int count, int total)
      : ring_(ring + threadIdx.x), products_(products), count_(count), left_(total) {
    next_pass();
#pragma unroll 1
    for (int i = 0; i < kGroups; ++i) fetch();
  }

  // Waits for this thread's next group.
  __device__ __forceinline__ void wait() { cp_async_wait<kGroups - 1>(); }

  // Chunk n of the next group, which is waited for.
  __device__ __forceinline__ WeightChunk chunk(int n) const { return place()[n * kStreamThreads]; }

  // For every group that is no longer needed: sets the one behind all that are on their way on its way too. An empty
  // one behind the last: wait() counts them.
  __device__ __forceinline__ void fetch() {
    if (left_ > 0) {
#pragma unroll
      for (int n = 0; n < kStreamPass; ++n)
        if (n < tiles_) cp_async16(place() + n * kStreamThreads, chunks_ + offset_[n], true);
      chunks_ += step_;
      if (--steps_left_ == 0) next_pass();
    }
    cp_async_commit();
    group_ = (group_ + 1) % kGroups;
  }

  // Before the block ends.
  __device__ __forceinline__ void drain() { cp_async_wait<0>(); }

 private:
  // The ring is full but while it is made: the next group to be used has the place of the next to be fetched.
  __device__ __forceinline__ WeightChunk* place() const { return ring_ + group_ * kStreamPass * kStreamThreads; }

  // Goes to the next pass that this warp has a part in: all that the chunks of a pass share, so that fetch() has little
  // left to do. Passes, and steps within each, are in the order in which multiply_rows() takes them.
  __device__ __forceinline__ void next_pass() {
    for (;;) {
      const Product& product = products_[number_];
      const WarpShare share(product);
      tiles_ = share.tiles - pass_;
      if (tiles_ > 0) {
        chunks_ = product.data + share.step * kWarpSize + threadIdx.x % kWarpSize;
        step_ = share.step_stride * kWarpSize;
        steps_left_ = share.steps;
#pragma unroll
        for (int n = 0; n < kStreamPass; ++n)
          offset_[n] = product.tile(product.first + share.tile + (pass_ + n) * share.tile_stride) * product.pitch;
        pass_ += kStreamPass;
        return;
      }
      pass_ = 0;
      if (--left_ == 0) return;
      if (++number_ == count_) number_ = 0;
    }
  }

  WeightChunk* ring_;  // of this thread
  const Product* products_;
  int count_, left_;
  int number_ = 0, pass_ = 0;            // of the next pass: its product, and its first tile
  const WeightChunk* chunks_ = nullptr;  // of this thread, at the next step of tile 0
  int offset_[kStreamPass] = {};         // chunks from there to the tiles of the pass
  int tiles_ = 0, step_ = 0, steps_left_ = 0;
  int group_ = 0;
};

// Leaves the sums in `partial`, [step_stride][product.count][8][8], for when the block has met. x: 8 rows in shared
// memory, the product's first step at their beginning.
template <class T, class W, class Stream>
__device__ __forceinline__ void multiply_rows(Stream& stream, const Product& product, const T* x, int x_stride,
                                              float* partial) {
  constexpr int kChunk = 16 / sizeof(W), kDepth = 4 * kChunk;  // elements of a lane, and of a step along the depth
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const WarpShare share(product);
  const T* row = x + g * x_stride + t * kChunk;
#pragma unroll 1
  for (int pass = 0; pass < share.tiles; pass += kStreamPass) {
    const int tiles = share.tiles - pass;
    float sums[kStreamPass][4] = {};
#pragma unroll 1
    for (int i = 0; i < share.steps; ++i) {
      uint32_t a[kChunk / 2];  // pairs of row g
#pragma unroll
      for (int part = 0; part < kChunk; part += 8) {
        const auto eight =
            load_vec(reinterpret_cast<const Vec<T, 8>*>(row + (share.step + i * share.step_stride) * kDepth + part));
        memcpy(a + part / 2, &eight, sizeof eight);
      }
      stream.wait();
#pragma unroll
      for (int n = 0; n < kStreamPass; ++n) {
        if (n >= tiles) break;
        const WeightChunk chunk = stream.chunk(n);
#pragma unroll
        for (int k = 0; k < kChunk / 2; k += 2) {
          const uint32_t left[4] = {a[k], 0, a[k + 1], 0};
          mma_m16n8k16<T>(sums[n], left, weight_pair<T, W>(chunk, k), weight_pair<T, W>(chunk, k + 1));
        }
      }
      stream.fetch();
    }
#pragma unroll
    for (int n = 0; n < kStreamPass; ++n) {
      if (n >= tiles) break;
      const int tile = share.tile + (pass + n) * share.tile_stride;
      float* at = partial + (share.step * product.count + tile) * kSumsOfTile + g * kTileColumns + t * 2;
      store_vec(reinterpret_cast<Vec<float, 2>*>(at), {sums[n][0], sums[n][1]});
    }
  }
}

// The whole sum of a column (of the product's tiles, side by side) and row of what multiply_rows left.
__device__ __forceinline__ float whole_sum_of(const Product& product, const float* partial, int row, int column) {
  const int shares = WarpShare(product).step_stride;
  const float* at = partial + column / kTileColumns * kSumsOfTile + row * kTileColumns + column % kTileColumns;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kProductWarps; ++i)
    if (i < shares) sum += at[i * product.count * kSumsOfTile];
  return sum;
}

}  // namespace gitfast::cuda
