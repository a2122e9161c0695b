// The work of one block in a decode step: its cluster's head and share of the MLP, phase by phase (cuda/decode.h).
//
// A phase begins with the rows it works on, whole in every block: a sum over the clusters' partials, each block of a
// cluster adding up some columns for all of them, and the norm. It ends with this cluster's partial sums in global
// memory; the first cluster's have the bias and the residual in them.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/activation.cuh"
#include "cuda/cluster.h"
#include "cuda/decode.h"
#include "cuda/softmax.cuh"
#include "cuda/warp.cuh"
#include "cuda/weight_stream.cuh"

namespace gitfast::cuda {

constexpr int kHeadDim = kDecodeHeadDim;
constexpr int kRowPadding = 32;                // elements: rows of a warp's load start in different halves of the banks
constexpr int kState = kStateHead + kHeadDim;  // floats of a state of attention (cuda/softmax.cuh)
constexpr int kLanesOfKey = 8;                 // that share a key, 8 elements each
constexpr int kKeysAtOnce = kStreamThreads / kLanesOfKey;  // of one row
constexpr int kMostTiles = 12;                             // of one product in a block: what `scratch` has room for

// Where a block stands.
struct BlockPosition {
  int head, rank, cluster;
};

__device__ __forceinline__ BlockPosition position_of(const DecodeStep& args) {
  const int block = blockIdx.x;
  return {block / args.cluster, block % args.cluster, args.cluster};
}

// Parts of shared memory, in bytes from its beginning. `inner`: columns of the MLP that a cluster has.
struct DecodeShared {
  int row_stride, inner_stride, own_stride;  // elements
  size_t rows, residual, scratch, qkv, states, mixed, inner, bytes;

  // `kv_index`: of the ring of weights, which comes first.
  __host__ __device__ DecodeShared(int kv_index, int hidden, int inner_columns, int cluster) {
    row_stride = hidden + kRowPadding;
    inner_stride = inner_columns + kRowPadding;
    own_stride = (hidden / kTileColumns + cluster - 1) / cluster * kTileColumns;
    size_t at = sizeof(WeightChunk) * kv_index * kStreamThreads;
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
    bytes = at;
  }
};

// Products of a layer, as this block has them.
template <class W>
struct Products {
  static constexpr int kDepth = 64 / sizeof(W);
  static constexpr int kOneRun = 30;  // bits: all tiles in one

  static __device__ __forceinline__ Product shared_out(const TiledWeight& weight, int tiles,
                                                       const BlockPosition& position) {
    Product p{};
    p.weight = &weight;
    p.pitch = p.steps = static_cast<int>(weight.depth) / kDepth;
    p.first = tiles * position.rank / position.cluster;
    p.count = tiles * (position.rank + 1) / position.cluster - p.first;
    p.run_bits = kOneRun;
    return p;
  }
  static __device__ __forceinline__ Product qkv(const DecodeStep& args, int layer, const BlockPosition& position) {
    constexpr int kTilesOfHead = kHeadDim / kTileColumns;
    static_assert(kTilesOfHead == 8, "a run of three bits");
    Product p = shared_out(args.layer[layer].qkv, 3 * kTilesOfHead, position);
    p.run_bits = 3;
    p.stride = args.hidden / kTileColumns;
    p.base = position.head * kTilesOfHead;
    return p;
  }
  static __device__ __forceinline__ Product out(const DecodeStep& args, int layer, const BlockPosition& position) {
    Product p = shared_out(args.layer[layer].out, args.hidden / kTileColumns, position);
    p.first_step = position.head * kHeadDim / kDepth;
    p.steps = kHeadDim / kDepth;
    return p;
  }
  static __device__ __forceinline__ Product fc1(const DecodeStep& args, int layer, const BlockPosition& position) {
    const int tiles = args.intermediate / args.heads / kTileColumns;
    Product p = shared_out(args.layer[layer].fc1, tiles, position);
    p.base = position.head * tiles;
    return p;
  }
  static __device__ __forceinline__ Product fc2(const DecodeStep& args, int layer, const BlockPosition& position) {
    Product p = shared_out(args.layer[layer].fc2, args.hidden / kTileColumns, position);
    p.steps = args.intermediate / args.heads / kDepth;
    p.first_step = position.head * p.steps;
    return p;
  }
};

// One column of the states that lie `stride` floats apart, together.
__device__ __forceinline__ SoftmaxSums<1> merge_all(const float* states, int count, int stride, int column) {
  SoftmaxSums<1> all;
  for (int i = 0; i < count; ++i) all.merge(load_state<1>(states + i * stride, column));
  return all;
}

// Everything is inlined: behind a call, this object and the stream would live in memory.
template <class T, class W, int kStages, class Stream>
class DecodeBlock {
 public:
  __device__ __forceinline__ DecodeBlock(const DecodeStep& args, unsigned char* shared, Stream& stream)
      : args_(args),
        position_(position_of(args)),
        layout_(kStages, args.hidden, args.intermediate / args.heads, args.cluster),
        shared_(shared),
        stream_(stream) {}

  // The rows are those of the embeddings of ids.
  __device__ __forceinline__ void embed() {
    float* sums = scratch();
    const T *words = static_cast<const T*>(args_.words), *positions = static_cast<const T*>(args_.positions);
    for (int i = threadIdx.x; i < args_.rows * args_.hidden; i += blockDim.x) {
      const int row = i / args_.hidden, column = i % args_.hidden;
      const int id = args_.ids[row], position = args_.position_ids[row];
      const bool exists = id >= 0 && id < args_.num_words && position >= 0 && position < args_.num_positions;
      sums[i] = exists ? to_float(words[int64_t{id} * args_.hidden + column]) +
                             to_float(positions[int64_t{position} * args_.hidden + column])
                       : NAN;
    }
    __syncthreads();
    normalize(args_.gamma, args_.beta);
  }

  // The rows are the norm of what all clusters left.
  __device__ __forceinline__ void add_partials(const float* partials, const void* gamma, const void* beta) {
    const int chunks = args_.hidden / 4, begin = chunks * position_.rank / position_.cluster;
    const int mine = chunks * (position_.rank + 1) / position_.cluster - begin;
    for (int i = threadIdx.x; i < args_.rows * mine; i += blockDim.x) {
      const int at = i / mine * args_.hidden + (begin + i % mine) * 4;
      const float* from = partials + at;
      Vec<float, 4> sum{};
#pragma unroll 12  // those of all heads of git-base are on their way at once
      for (int head = 0; head < args_.heads; ++head) {
        const auto part =
            load_shared_cache(reinterpret_cast<const Vec<float, 4>*>(from + int64_t{head} * args_.rows * args_.hidden));
        for (int j = 0; j < 4; ++j) sum.at[j] += part.at[j];
      }
      for (int rank = 0; rank < position_.cluster; ++rank)
        store_vec(reinterpret_cast<Vec<float, 4>*>(in_block(rank, scratch() + at)), sum);
    }
    cluster_sync();
    normalize(gamma, beta);
  }

  __device__ __forceinline__ void attend(int index, float* partials) {
    const DecodeLayer& layer = args_.layer[index];
    const Product qkv = Products<W>::qkv(args_, index, position_), out = Products<W>::out(args_, index, position_);
    multiply_rows<T, W>(stream_, qkv, rows(), layout_.row_stride, scratch());
    const int columns = qkv.count * kTileColumns, each = args_.rows * columns;
    for (int i = threadIdx.x; i < each * position_.cluster; i += blockDim.x) {
      const int rank = i / each, row = i % each / columns, column = i % columns;
      const float y = element(qkv, layer.qkv_bias, row, column);
      in_block(rank, this->qkv())[row * 3 * kHeadDim + qkv.first * kTileColumns + column] = to_float(from_float<T>(y));
    }
    cluster_sync();
    store_keys_values(layer);
    attend_to_own_keys(layer);
    __syncthreads();
    // Merge the states of the warps into one in every block of the cluster, then those of its blocks into the result.
    const int values = args_.rows * kHeadDim;
    for (int i = threadIdx.x; i < values * position_.cluster; i += blockDim.x) {
      const int rank = i / values, row = i % values / kHeadDim, column = i % kHeadDim;
      const auto part = merge_all(scratch() + row * kState, kProductWarps, kStreamRows * kState, column);
      float* state = in_block(rank, states() + (position_.rank * kStreamRows + row) * kState);
      state[kStateHead + column] = part.sums[0];
      if (column == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {part.peak, part.total});
    }
    cluster_sync();
    constexpr int kStride = kHeadDim + kRowPadding;
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
      const int row = i / kHeadDim, column = i % kHeadDim;
      const auto all = merge_all(states() + row * kState, position_.cluster, kStreamRows * kState, column);
      mixed()[row * kStride + column] = from_float<T>(all.sums[0] * all.normalise());
    }
    __syncthreads();
    multiply_rows<T, W>(stream_, out, mixed(), kStride, scratch());
    store_partial(out, layer.out_bias, partials);
  }

  __device__ __forceinline__ void mlp(int index, float* partials) {
    const DecodeLayer& layer = args_.layer[index];
    const Product fc1 = Products<W>::fc1(args_, index, position_), fc2 = Products<W>::fc2(args_, index, position_);
    multiply_rows<T, W>(stream_, fc1, rows(), layout_.row_stride, scratch());
    const int pairs = fc1.count * kTileColumns / 2, each = args_.rows * pairs;
    for (int i = threadIdx.x; i < each * position_.cluster; i += blockDim.x) {
      const int rank = i / each, row = i % each / pairs, column = i % pairs * 2;
      const uint32_t two = pair_of<T>(gelu(element(fc1, layer.fc1_bias, row, column)),
                                      gelu(element(fc1, layer.fc1_bias, row, column + 1)));
      T* to = in_block(rank, inner() + row * layout_.inner_stride + fc1.first * kTileColumns + column);
      store_vec(reinterpret_cast<Vec<uint32_t, 1>*>(to), {two});
    }
    cluster_sync();
    multiply_rows<T, W>(stream_, fc2, inner(), layout_.inner_stride, scratch());
    store_partial(fc2, layer.fc2_bias, partials);
  }

  __device__ __forceinline__ T* rows() { return reinterpret_cast<T*>(shared_ + layout_.rows); }
  __device__ __forceinline__ float* scratch() { return reinterpret_cast<float*>(shared_ + layout_.scratch); }
  __device__ __forceinline__ const DecodeShared& layout() const { return layout_; }

 private:
  __device__ __forceinline__ float* residual() { return reinterpret_cast<float*>(shared_ + layout_.residual); }
  __device__ __forceinline__ float* qkv() { return reinterpret_cast<float*>(shared_ + layout_.qkv); }
  __device__ __forceinline__ float* states() { return reinterpret_cast<float*>(shared_ + layout_.states); }
  __device__ __forceinline__ T* mixed() { return reinterpret_cast<T*>(shared_ + layout_.mixed); }
  __device__ __forceinline__ T* inner() { return reinterpret_cast<T*>(shared_ + layout_.inner); }

  // The columns of a layer's output that this block adds to its cluster's partial sums.
  __device__ __forceinline__ int first_own() const {
    return args_.hidden / kTileColumns * position_.rank / position_.cluster * kTileColumns;
  }

  // Rows from the sums in scratch, for all threads; the statistics of a row in one order, however many rows there are.
  __device__ __forceinline__ void normalize(const void* gamma_data, const void* beta_data) {
    const T *gamma = static_cast<const T*>(gamma_data), *beta = static_cast<const T*>(beta_data);
    int warps = kProductWarps;  // of a row
    while (warps * args_.rows > kProductWarps) warps /= 2;
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, row = warp / warps, width = args_.hidden;
    if (row < args_.rows) {
      const float* sums = scratch() + row * width;
      float sum = 0, squares = 0;
      for (int i = lane; i < width; i += kWarpSize) sum += sums[i];
      const float mean = sum_of_warp(sum) / width;
      for (int i = lane; i < width; i += kWarpSize) squares += (sums[i] - mean) * (sums[i] - mean);
      const float scale = 1.0f / sqrtf(sum_of_warp(squares) / width + args_.eps);
      const int own = first_own(), end = own + Products<W>::out(args_, 0, position_).count * kTileColumns;
      for (int i = lane + warp % warps * kWarpSize; i < width; i += warps * kWarpSize) {
        const float y = (sums[i] - mean) * scale * to_float(gamma[i]) + to_float(beta[i]);
        rows()[row * layout_.row_stride + i] = from_float<T>(y);
        if (i >= own && i < end) residual()[row * layout_.own_stride + i - own] = y;
      }
    }
    __syncthreads();
  }

  // One element of a product, from the sums in scratch.
  __device__ __forceinline__ float element(const Product& product, const void* bias, int row, int column) {
    const float sum = whole_sum_of(product, scratch(), row, column);
    return scale_and_bias<T>(sum, *product.weight, bias, product.column(column));
  }

  __device__ __forceinline__ void store_partial(const Product& product, const void* bias, float* partials) {
    const int columns = product.count * kTileColumns, first = first_own();
    for (int i = threadIdx.x; i < args_.rows * columns; i += blockDim.x) {
      const int row = i / columns, column = i % columns;
      float y = element(product, position_.head == 0 ? bias : nullptr, row, column);
      if (position_.head == 0) y += residual()[row * layout_.own_stride + column];
      partials[(int64_t{position_.head} * args_.rows + row) * args_.hidden + first + column] = y;
    }
  }

  // Text tokens go round the blocks of a cluster: a token's keys and values are stored and read by the same block.
  __device__ __forceinline__ void store_keys_values(const DecodeLayer& layer) {
    for (int i = threadIdx.x; i < args_.rows * 2 * kHeadDim; i += blockDim.x) {
      const int row = i / (2 * kHeadDim), which = i / kHeadDim % 2, column = i % kHeadDim;
      const int token = args_.text_len[row] - 1;
      if (token % position_.cluster != position_.rank) continue;
      const int64_t entry = args_.kv_index[row * args_.max_text + token];
      T* to = static_cast<T*>(which ? layer.v_text : layer.k_text);
      to[(entry * args_.heads + position_.head) * kHeadDim + column] =
          from_float<T>(qkv()[(row * 3 + 1 + which) * kHeadDim + column]);
    }
  }

  struct KeyValue {
    Vec<T, 8> k, v;
  };

  // The keys of a row in this block, prefix first. The row's own token is not in memory yet.
  struct Keys {
    int prefix, text, length;  // of the prefix and of the text here, and of all the row's text

    __device__ __forceinline__ int count() const { return prefix + text; }
  };
  __device__ __forceinline__ Keys keys_of(int row) const {
    const int length = args_.text_len[row];
    const int prefix_len = args_.image[row] < 0 ? 0 : args_.prefix_len;
    const int begin = prefix_len * position_.rank / position_.cluster;
    return {prefix_len * (position_.rank + 1) / position_.cluster - begin,
            (length - position_.rank + position_.cluster - 1) / position_.cluster, length};
  }
  __device__ __forceinline__ int token_of(const Keys& keys, int j) const {
    return position_.rank + (j - keys.prefix) * position_.cluster;
  }

  __device__ __forceinline__ void load_key(const DecodeLayer& layer, int row, const Keys& keys, int j, KeyValue& to) {
    if (j >= keys.prefix) {
      const int token = token_of(keys, j);
      if (token >= keys.length - 1) return;
      const int64_t entry = args_.kv_index[row * args_.max_text + token];
      return load_at<T>(layer.k_text, layer.v_text, entry * args_.heads + position_.head, to);
    }
    const int64_t head = int64_t{args_.image[row]} * args_.heads + position_.head;
    const int64_t at = head * args_.prefix_len + args_.prefix_len * position_.rank / position_.cluster + j;
    if (!layer.k_scale) return load_at<T>(layer.k_prefix, layer.v_prefix, at, to);
    load_at<int8_t>(layer.k_prefix, layer.v_prefix, at, to, layer.k_scale[at], layer.v_scale[at]);
  }
  // This lane's elements of key and value number `at`, 64 of Stored each.
  template <class Stored>
  __device__ __forceinline__ void load_at(const void* keys, const void* values, int64_t at, KeyValue& to,
                                          float k_scale = 1, float v_scale = 1) {
    const int64_t element = at * kHeadDim + threadIdx.x % kLanesOfKey * 8;
    const auto load = [&](const void* from, float scale, Vec<T, 8>& eight) {
      const auto stored = load_vec(reinterpret_cast<const Vec<Stored, 8>*>(static_cast<const Stored*>(from) + element));
      if constexpr (std::is_same_v<Stored, T>)
        eight = stored;
      else
        for (int i = 0; i < 8; ++i) eight.at[i] = from_float<T>(stored.at[i] * scale);
    };
    load(keys, k_scale, to.k);
    load(values, v_scale, to.v);
  }

  // Every eight lanes take every 32nd key of a row; each warp leaves a state, [warp][8][kState] in scratch.
  __device__ __forceinline__ void attend_to_own_keys(const DecodeLayer& layer) {
    constexpr int kAhead = 2;  // rows whose first keys are loaded together
    const int lane = threadIdx.x % kWarpSize, first = threadIdx.x / kLanesOfKey, element = lane % kLanesOfKey * 8;
    for (int batch = 0; batch < args_.rows; batch += kAhead) {
      KeyValue ahead[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (batch + i >= args_.rows) break;
        const Keys keys = keys_of(batch + i);
        if (first < keys.count()) load_key(layer, batch + i, keys, first, ahead[i]);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int row = batch + i;
        if (row >= args_.rows) break;
        attend_row(layer, row, first, element, ahead[i]);
      }
    }
  }

  __device__ __forceinline__ void attend_row(const DecodeLayer& layer, int row, int first, int element,
                                             KeyValue& loaded) {
    const Keys keys = keys_of(row);
    const float* own = qkv() + row * 3 * kHeadDim;
    float query[8];
    SoftmaxSums<8> found;
    for (int e = 0; e < 8; ++e) query[e] = own[element + e];
    // Lanes of a warp stay together: the shuffles want all of them.
    for (int base = 0; base + first / 4 * 4 < keys.count(); base += kKeysAtOnce) {
      const int j = base + first;
      const bool valid = j < keys.count();
      if (base > 0 && valid) load_key(layer, row, keys, j, loaded);
      float k[8], v[8], score = 0;
      const bool is_own = valid && j >= keys.prefix && token_of(keys, j) == keys.length - 1;
      for (int e = 0; e < 8; ++e) {
        k[e] = is_own ? own[kHeadDim + element + e] : valid ? to_float(loaded.k.at[e]) : 0.0f;
        v[e] = is_own ? own[2 * kHeadDim + element + e] : valid ? to_float(loaded.v.at[e]) : 0.0f;
        score = fmaf(query[e], k[e], score);
      }
      for (int lanes = 1; lanes < kLanesOfKey; lanes *= 2) score += __shfl_xor_sync(kAllLanes, score, lanes);
      constexpr float kScale = 0.125f * kLog2E;  // 1 / sqrt(64)
      score = valid ? score * kScale : -INFINITY;
      found.rescale(score);
      const float weight = found.weight(score);
      found.total += weight;
      for (int e = 0; e < 8; ++e) found.sums[e] = fmaf(weight, v[e], found.sums[e]);
    }
    for (int lanes = kLanesOfKey; lanes < kWarpSize; lanes *= 2) {
      SoftmaxSums<8> other;
      other.peak = __shfl_xor_sync(kAllLanes, found.peak, lanes);
      other.total = __shfl_xor_sync(kAllLanes, found.total, lanes);
      for (int e = 0; e < 8; ++e) other.sums[e] = __shfl_xor_sync(kAllLanes, found.sums[e], lanes);
      found.merge(other);
    }
    const int lane = threadIdx.x % kWarpSize;
    if (lane >= kLanesOfKey) return;
    float* state = scratch() + (threadIdx.x / kWarpSize * kStreamRows + row) * kState;
    if (lane == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {found.peak, found.total});
    for (int e = 0; e < 8; e += 4)
      store_vec(reinterpret_cast<Vec<float, 4>*>(state + kStateHead + element + e),
                {found.sums[e], found.sums[e + 1], found.sums[e + 2], found.sums[e + 3]});
  }

  const DecodeStep& args_;
  const BlockPosition position_;
  const DecodeShared layout_;
  unsigned char* shared_;
  Stream& stream_;
};

// run(Types<T, W>()) with the types of a checked model: weights of 8 bits stand beside bfloat16.
template <class Run>
void with_decode_types(const DecodeStep& args, Run run) {
  const DType weights = args.layer[0].qkv.dtype;
  if (weights == DType::i8) return run(Types<__nv_bfloat16, int8_t>());
#ifndef GITFAST_FEW_HEAD_DIMS  // for tests that compile this many times
  if (weights == DType::u8) return run(Types<__nv_bfloat16, Float8>());
  if (weights == DType::f16) return run(Types<__half, __half>());
  run(Types<__nv_bfloat16, __nv_bfloat16>());
#endif
}

}  // namespace gitfast::cuda
