// What a block has of a decode step: where it stands, its shared memory, and its part of every product.
#pragma once

#include "cuda/decode.h"
#include "cuda/softmax.cuh"
#include "cuda/weight_stream.cuh"

namespace gitfast::cuda {

constexpr int kHeadDim = kDecodeHeadDim;
constexpr int kRowPadding = 32;                // elements: rows of a warp's load start in different halves of the banks
constexpr int kState = kStateHead + kHeadDim;  // floats of a state of attention (cuda/softmax.cuh)
constexpr int kMostTiles = 12;                 // of one product in a block: what `scratch` has room for
constexpr int kMostSums = kMostTiles * kTileColumns;  // columns of one product in a block

// Where a block stands.
struct BlockPosition {
  int head, rank, cluster;
};

__device__ __forceinline__ BlockPosition position_of(const DecodeStep& args) {
  const int block = blockIdx.x;
  return {block / args.cluster, block % args.cluster, args.cluster};
}

// What the phases of a step know of a row, in shared memory.
struct RowFacts {
  int image;   // or -1
  int length;  // of its text, its own token counted
  int text;    // tokens of the text whose keys are this block's
  int entry;   // of its own token, where its keys are this block's; or -1
};

// What the sum of a column is scaled by, and what is added.
struct ColumnEnd {
  float scale, bias;
};

// Parts of shared memory, in bytes from its beginning. `inner`: columns of the MLP that a cluster has.
struct DecodeShared {
  int row_stride, inner_stride, own_stride;  // elements
  size_t rows, residual, scratch, qkv, states, mixed, inner, facts, ends, bytes;

  // `ring`: bytes of weights, which come first.
  DecodeShared(size_t ring, int hidden, int inner_columns, int cluster) {
    row_stride = hidden + kRowPadding;
    inner_stride = inner_columns + kRowPadding;
    own_stride = (hidden / kTileColumns + cluster - 1) / cluster * kTileColumns;
    size_t at = ring;
    const auto take = [&at](size_t bytes) {
      const size_t here = at;
      at += (bytes + 127) / 128 * 128;
      return here;
    };
    const auto most = [](size_t a, size_t b) { return a > b ? a : b; };
    rows = take(size_t{kStreamRows} * row_stride * 2);                           // T [8][D]
    residual = take(size_t{kStreamRows} * own_stride * 4);                       // float [8][columns of this block]
    scratch = take(most(size_t{kStreamRows} * hidden * 4,                        // float [8][D]: sums of partials
                        size_t{kProductWarps} * kMostTiles * kSumsOfTile * 4));  // or of products, or warps' states
    qkv = take(size_t{kStreamRows} * 3 * kHeadDim * 4);                          // float [8][q, k, v][64], values of T
    states = take(size_t{kStreamRows} * cluster * kState * 4);                   // float [cluster][8][kState]
    mixed = take(size_t{kStreamRows} * (kHeadDim + kRowPadding) * 2);            // T [8][64]: what attention gives
    inner = take(size_t{kStreamRows} * inner_stride * 2);                        // T [8][inner]
    facts = take(size_t{kStreamRows} * sizeof(RowFacts));
    ends = take(size_t{kMostSums} * sizeof(ColumnEnd));  // of the product at hand
    bytes = at;
  }
};

// Products of a layer, in their order; those of the head; and what comes before all.
enum Phase { kQkv, kOut, kFc1, kFc2, kHead, kEmbed };
constexpr int kProductsOfLayer = kHead;

// Products as a block has them.
template <class W>
struct Products {
  static constexpr int kDepth = 64 / sizeof(W);
  static constexpr int kOneRun = 30;  // bits: all tiles in one

  // Tiles [begin, end) of a weight, over all its depth.
  static __device__ __forceinline__ Product some_tiles(const TiledWeight& weight, const void* bias, int begin,
                                                       int end) {
    Product p{};
    p.data = static_cast<const WeightChunk*>(weight.data);
    p.scales = weight.scales;
    p.bias = bias;
    p.steps = static_cast<int>(weight.depth) / kDepth;
    p.pitch = p.steps * kWarpSize;
    p.columns = static_cast<int>(weight.columns);
    p.first = begin;
    p.count = end - begin;
    p.run_bits = kOneRun;
    return p;
  }
  // The block's part of `tiles` that its cluster shares.
  static __device__ __forceinline__ Product shared_out(const TiledWeight& weight, const void* bias, int tiles,
                                                       const BlockPosition& position) {
    return some_tiles(weight, bias, tiles * position.rank / position.cluster,
                      tiles * (position.rank + 1) / position.cluster);
  }
  // Some of the depth; the first cluster adds the bias.
  static __device__ __forceinline__ Product part_of_depth(const TiledWeight& weight, const void* bias, int tiles,
                                                          int steps, const BlockPosition& position) {
    Product p = shared_out(weight, position.head == 0 ? bias : nullptr, tiles, position);
    p.data += position.head * steps * kWarpSize;
    p.steps = steps;
    return p;
  }
  static __device__ __forceinline__ Product of_layer(const DecodeStep& args, int number,
                                                     const BlockPosition& position) {
    const DecodeLayer& layer = args.layer[number / kProductsOfLayer];
    const int tiles = args.hidden / kTileColumns, inner = args.intermediate / args.heads;
    switch (number % kProductsOfLayer) {
      case kQkv: {
        constexpr int kTilesOfHead = kHeadDim / kTileColumns;
        static_assert(kTilesOfHead == 8, "a run of three bits");
        Product p = shared_out(layer.qkv, layer.qkv_bias, 3 * kTilesOfHead, position);
        p.run_bits = 3;
        p.stride = tiles;
        p.base = position.head * kTilesOfHead;
        return p;
      }
      case kOut:
        return part_of_depth(layer.out, layer.out_bias, tiles, kHeadDim / kDepth, position);
      case kFc1: {
        Product p = shared_out(layer.fc1, layer.fc1_bias, inner / kTileColumns, position);
        p.base = position.head * (inner / kTileColumns);
        return p;
      }
      default:
        return part_of_depth(layer.fc2, layer.fc2_bias, tiles, inner / kDepth, position);
    }
  }
};

}  // namespace gitfast::cuda
