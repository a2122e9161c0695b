// The work of one block in a decode step: its cluster's head and share of the MLP, phase by phase (cuda/decode.h).
//
// A phase begins with the rows it works on, whole in every block: a sum over the clusters' partials, each block of a
// cluster adding up some columns for all of them, and the norm. It ends with this cluster's partial sums in global
// memory; the first cluster's have the bias and the residual in them.
//
// There is one piece of code for all products, and one for whatever else the phases share: what is needed of a phase is
// in a table. Unrolled over phases, the code would be larger than the cache of instructions, and fetched anew in every
// step.
#pragma once

#include <cmath>

#include "cuda/activation.cuh"
#include "cuda/cluster.h"
#include "cuda/decode_plan.cuh"
#include "cuda/warp.cuh"

namespace gitfast::cuda {

constexpr int kLanesOfKey = 8;                             // that share a key, 8 elements each
constexpr int kKeysAtOnce = kStreamThreads / kLanesOfKey;  // of one row

// One column of the states that lie `stride` floats apart, together.
__device__ __forceinline__ SoftmaxSums<1> merge_all(const float* states, int count, int stride, int column) {
  SoftmaxSums<1> all;
#pragma unroll 1
  for (int i = 0; i < count; ++i) all.merge(load_state<1>(states + i * stride, column));
  return all;
}

// Everything is inlined: behind a call, this object and the stream would live in memory.
template <class T, class W, class Stream>
class DecodeBlock {
 public:
  using Eight = Vec<T, 8>;

  // A norm's factors and terms of eight columns.
  struct Norm {
    Eight gamma, beta;
  };

  // A key and its value, eight elements of each: of T, or 8 bytes of int8 with their scales.
  struct KeyValue {
    Vec<uint32_t, 4> k, v;
    float k_scale, v_scale;
  };

  __device__ __forceinline__ DecodeBlock(const DecodeStep& args, const DecodeShared& layout, unsigned char* shared,
                                         Stream& stream)
      : args_(args), position_(position_of(args)), layout_(layout), shared_(shared), stream_(stream) {
    while (warps_of_row_ * args.rows > kProductWarps) warps_of_row_ /= 2;
    own_begin_ = args.hidden / kTileColumns * position_.rank / position_.cluster * kTileColumns;
    own_end_ = args.hidden / kTileColumns * (position_.rank + 1) / position_.cluster * kTileColumns;
    prefix_begin_ = args.prefix_len * position_.rank / position_.cluster;
    prefix_ = args.prefix_len * (position_.rank + 1) / position_.cluster - prefix_begin_;
  }

  // Begins a step: the facts of its rows, and in scratch their embeddings.
  __device__ __forceinline__ void embed() {
    if (static_cast<int>(threadIdx.x) < args_.rows) {
      const int row = threadIdx.x, length = args_.text_len[row], token = length - 1;
      const int before = length - position_.rank + position_.cluster - 1;
      const bool here = token % position_.cluster == position_.rank;
      facts()[row] = {args_.image[row], length, before / position_.cluster,
                      here ? args_.kv_index[row * args_.max_text + token] : -1};
    }
    const int row = row_of_warp();
    if (row < args_.rows) {
      const int id = args_.ids[row], position = args_.position_ids[row];
      const bool exists = id >= 0 && id < args_.num_words && position >= 0 && position < args_.num_positions;
      const T* word = static_cast<const T*>(args_.words) + (exists ? int64_t{id} * args_.hidden : 0);
      const T* place = static_cast<const T*>(args_.positions) + (exists ? int64_t{position} * args_.hidden : 0);
      for (int at = first_column(); at < args_.hidden; at += columns_at_once()) {
        const auto a = load_vec(reinterpret_cast<const Eight*>(word + at));
        const auto b = load_vec(reinterpret_cast<const Eight*>(place + at));
        for (int i = 0; i < 8; ++i)
          scratch()[row * args_.hidden + at + i] = exists ? to_float(a.at[i]) + to_float(b.at[i]) : NAN;
      }
    }
    __syncthreads();
  }

  // What a row needs first of its norm: on its way while the block multiplies and waits for others.
  __device__ __forceinline__ Norm load_norm(const void* gamma, const void* beta) const {
    Norm norm{};
    if (first_column() < args_.hidden) norm = norm_at(gamma, beta, first_column());
    return norm;
  }

  // Rows from the sums in scratch, for all threads; the statistics of a row in one order, however many rows there are.
  __device__ __forceinline__ void normalize(const void* gamma, const void* beta, Norm norm) {
    const int lane = threadIdx.x % kWarpSize, row = row_of_warp(), width = args_.hidden;
    if (row < args_.rows) {
      const float* sums = scratch() + row * width;
      float sum = 0, squares = 0;
#pragma unroll 2
      for (int at = lane * 4; at < width; at += kWarpSize * 4) {
        const auto four = load_vec(reinterpret_cast<const Vec<float, 4>*>(sums + at));
        for (const float x : four.at) sum += x;
      }
      const float mean = sum_of_warp(sum) / width;
#pragma unroll 2
      for (int at = lane * 4; at < width; at += kWarpSize * 4) {
        const auto four = load_vec(reinterpret_cast<const Vec<float, 4>*>(sums + at));
        for (const float x : four.at) squares += (x - mean) * (x - mean);
      }
      const float scale = 1.0f / sqrtf(sum_of_warp(squares) / width + args_.eps);
#pragma unroll 1
      for (int at = first_column(); at < width; at += columns_at_once()) {
        if (at != first_column()) norm = norm_at(gamma, beta, at);
        Eight rounded;
        float y[8];
        for (int i = 0; i < 8; ++i) {
          y[i] = (sums[at + i] - mean) * scale * to_float(norm.gamma.at[i]) + to_float(norm.beta.at[i]);
          rounded.at[i] = from_float<T>(y[i]);
        }
        store_vec(reinterpret_cast<Eight*>(rows() + row * layout_.row_stride + at), rounded);
        if (at < own_begin_ || at >= own_end_) continue;
        for (int i = 0; i < 8; ++i) residual()[row * layout_.own_stride + at - own_begin_ + i] = y[i];
      }
    }
    __syncthreads();
  }

  // Leaves in scratch what all clusters left, added up.
  __device__ __forceinline__ void add_partials(const float* partials) {
    const int chunks = args_.hidden / 4, begin = chunks * position_.rank / position_.cluster;
    const int mine = chunks * (position_.rank + 1) / position_.cluster - begin;
    for (int row = threadIdx.x / kWarpSize; row < args_.rows; row += kProductWarps) {
#pragma unroll 1
      for (int i = threadIdx.x % kWarpSize; i < mine; i += kWarpSize) {
        const int at = row * args_.hidden + (begin + i) * 4;
        const float* from = partials + at;
        Vec<float, 4> sum{};
#pragma unroll 12  // those of all heads of git-base are on their way at once
        for (int head = 0; head < args_.heads; ++head) {
          const auto part = load_shared_cache(
              reinterpret_cast<const Vec<float, 4>*>(from + int64_t{head} * args_.rows * args_.hidden));
          for (int j = 0; j < 4; ++j) sum.at[j] += part.at[j];
        }
#pragma unroll 1
        for (int rank = 0; rank < position_.cluster; ++rank)
          store_vec(reinterpret_cast<Vec<float, 4>*>(in_block(rank, scratch() + at)), sum);
      }
    }
    cluster_sync();
  }

  // A product of the rows that the phase reads: its sums in scratch, and beside them what ends them.
  __device__ __forceinline__ void multiply(const Product& product, int phase) {
    const T* x = phase == kOut ? mixed() : phase == kFc2 ? inner() : rows();
    const int x_stride = phase == kOut ? kMixedStride : phase == kFc2 ? layout_.inner_stride : layout_.row_stride;
    const int column = threadIdx.x, count = product.count * kTileColumns;
    float scale = 1;
    T bias = from_float<T>(0.0f);
    if (column < count) {  // on their way while weights are multiplied
      const int at = product.column(column);
      if (product.scales && at < product.columns) scale = product.scales[at];
      if (product.bias && at < product.columns) bias = static_cast<const T*>(product.bias)[at];
    }
    multiply_rows<T, W>(stream_, product, x, x_stride, scratch());
    if (column < count) ends()[column] = {scale, to_float(bias)};
    __syncthreads();
  }

  // One element of the product that was multiplied last.
  __device__ __forceinline__ float element(const Product& product, int row, int column) {
    const ColumnEnd end = ends()[column];
    return fmaf(whole_sum_of(product, scratch(), row, column), end.scale, end.bias);
  }

  // The key that attention begins with: on its way while queries are computed.
  __device__ __forceinline__ KeyValue load_first_key(const DecodeLayer& layer) {
    KeyValue first{};
    load_key(layer, 0, threadIdx.x / kLanesOfKey, first);
    return first;
  }

  // From queries, keys and values in scratch to the cluster's mix of values.
  __device__ __forceinline__ void attend(const Product& product, const DecodeLayer& layer, const KeyValue& first) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll 1
    for (int rank = warp; rank < position_.cluster; rank += kProductWarps) {
      float* to = in_block(rank, qkv() + product.first * kTileColumns);
#pragma unroll 1
      for (int row = 0; row < args_.rows; ++row)
#pragma unroll 1
        for (int column = lane; column < product.count * kTileColumns; column += kWarpSize)
          to[row * 3 * kHeadDim + column] = to_float(from_float<T>(element(product, row, column)));
    }
    cluster_sync();
    store_keys_values(layer);
    attend_to_own_keys(layer, first);
    __syncthreads();
    // Merge the states of the warps into one in every block of the cluster, then those of its blocks into the result.
#pragma unroll 1
    for (int rank = warp; rank < position_.cluster; rank += kProductWarps) {
      float* to = in_block(rank, states() + position_.rank * kStreamRows * kState);
#pragma unroll 1
      for (int i = lane; i < args_.rows * kHeadDim; i += kWarpSize) {
        const int row = i / kHeadDim, column = i % kHeadDim;
        const auto part = merge_all(scratch() + row * kState, kProductWarps, kStreamRows * kState, column);
        float* state = to + row * kState;
        state[kStateHead + column] = part.sums[0];
        if (column == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {part.peak, part.total});
      }
    }
    cluster_sync();
#pragma unroll 1
    for (int i = threadIdx.x; i < args_.rows * kHeadDim; i += kStreamThreads) {
      const int row = i / kHeadDim, column = i % kHeadDim;
      const auto all = merge_all(states() + row * kState, position_.cluster, kStreamRows * kState, column);
      mixed()[row * kMixedStride + column] = from_float<T>(all.sums[0] * all.normalise());
    }
    __syncthreads();
  }

  // The MLP's inner columns from scratch, in every block of the cluster.
  __device__ __forceinline__ void activate(const Product& product) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
    for (int rank = threadIdx.x / kWarpSize; rank < position_.cluster; rank += kProductWarps) {
      T* to = in_block(rank, inner() + product.first * kTileColumns);
#pragma unroll 1
      for (int row = 0; row < args_.rows; ++row)
#pragma unroll 1
        for (int column = lane; column < product.count * kTileColumns; column += kWarpSize)
          to[row * layout_.inner_stride + column] = from_float<T>(gelu(element(product, row, column)));
    }
    cluster_sync();
  }

  // This block's columns of its cluster's partial sums.
  __device__ __forceinline__ void store_partial(const Product& product, float* partials) {
    constexpr int kColumns = kStreamThreads / 2;
    static_assert(kMostSums <= kColumns, "two rows at once");
    const int column = threadIdx.x % kColumns;
    if (column >= product.count * kTileColumns) return;
    for (int row = threadIdx.x / kColumns; row < args_.rows; row += 2) {
      float y = element(product, row, column);
      if (position_.head == 0) y += residual()[row * layout_.own_stride + column];
      partials[(int64_t{position_.head} * args_.rows + row) * args_.hidden + own_begin_ + column] = y;
    }
  }

 private:
  static constexpr int kMixedStride = kHeadDim + kRowPadding;

  __device__ __forceinline__ T* rows() { return reinterpret_cast<T*>(shared_ + layout_.rows); }
  __device__ __forceinline__ T* mixed() { return reinterpret_cast<T*>(shared_ + layout_.mixed); }
  __device__ __forceinline__ T* inner() { return reinterpret_cast<T*>(shared_ + layout_.inner); }
  __device__ __forceinline__ float* scratch() { return reinterpret_cast<float*>(shared_ + layout_.scratch); }
  __device__ __forceinline__ float* residual() { return reinterpret_cast<float*>(shared_ + layout_.residual); }
  __device__ __forceinline__ float* qkv() { return reinterpret_cast<float*>(shared_ + layout_.qkv); }
  __device__ __forceinline__ float* states() { return reinterpret_cast<float*>(shared_ + layout_.states); }
  __device__ __forceinline__ RowFacts* facts() { return reinterpret_cast<RowFacts*>(shared_ + layout_.facts); }
  __device__ __forceinline__ ColumnEnd* ends() { return reinterpret_cast<ColumnEnd*>(shared_ + layout_.ends); }

  // The row that this warp embeds and normalizes, which may be none; where its threads begin, and go on.
  __device__ __forceinline__ int row_of_warp() const { return threadIdx.x / kWarpSize / warps_of_row_; }
  __device__ __forceinline__ int first_column() const { return threadIdx.x % (warps_of_row_ * kWarpSize) * 8; }
  __device__ __forceinline__ int columns_at_once() const { return warps_of_row_ * kWarpSize * 8; }

  __device__ __forceinline__ static Norm norm_at(const void* gamma, const void* beta, int column) {
    return {load_vec(reinterpret_cast<const Eight*>(static_cast<const T*>(gamma) + column)),
            load_vec(reinterpret_cast<const Eight*>(static_cast<const T*>(beta) + column))};
  }

  // Text tokens go round the blocks of a cluster: a token's keys and values are stored and read by the same block.
  __device__ __forceinline__ void store_keys_values(const DecodeLayer& layer) {
#pragma unroll 1
    for (int i = threadIdx.x; i < args_.rows * 2 * kHeadDim; i += kStreamThreads) {
      const int row = i / (2 * kHeadDim), which = i / kHeadDim % 2, column = i % kHeadDim;
      const int64_t entry = facts()[row].entry;
      if (entry < 0) continue;
      T* to = static_cast<T*>(which ? layer.v_text : layer.k_text);
      to[(entry * args_.heads + position_.head) * kHeadDim + column] =
          from_float<T>(qkv()[(row * 3 + 1 + which) * kHeadDim + column]);
    }
  }

  // Keys of a row in this block: those of the prefix, then those of its text.
  __device__ __forceinline__ int prefix_of(const RowFacts& row) const { return row.image < 0 ? 0 : prefix_; }
  __device__ __forceinline__ int keys_of(const RowFacts& row) const { return prefix_of(row) + row.text; }
  __device__ __forceinline__ int token_of(const RowFacts& row, int j) const {
    return position_.rank + (j - prefix_of(row)) * position_.cluster;
  }

  // Loads this lane's elements of key j, if there is one; the row's own token is not in memory yet.
  __device__ __forceinline__ void load_key(const DecodeLayer& layer, int number, int j, KeyValue& to) {
    const RowFacts row = facts()[number];
    if (j >= keys_of(row)) return;
    const void *keys = layer.k_text, *values = layer.v_text;
    int64_t at;
    if (j >= prefix_of(row)) {
      const int token = token_of(row, j);
      if (token >= row.length - 1) return;
      at = int64_t{args_.kv_index[number * args_.max_text + token]} * args_.heads + position_.head;
    } else {
      keys = layer.k_prefix, values = layer.v_prefix;
      at = (int64_t{row.image} * args_.heads + position_.head) * args_.prefix_len + prefix_begin_ + j;
      if (layer.k_scale) {
        to = {load_eight<int8_t>(keys, at), load_eight<int8_t>(values, at), layer.k_scale[at], layer.v_scale[at]};
        return;
      }
    }
    to = {load_eight<T>(keys, at), load_eight<T>(values, at), 0, 0};
  }
  // This lane's elements of number `at`, 64 of Stored each.
  template <class Stored>
  static __device__ __forceinline__ Vec<uint32_t, 4> load_eight(const void* from, int64_t at) {
    const int64_t element = at * kHeadDim + threadIdx.x % kLanesOfKey * 8;
    const auto eight = load_vec(reinterpret_cast<const Vec<Stored, 8>*>(static_cast<const Stored*>(from) + element));
    Vec<uint32_t, 4> loaded{};
    memcpy(&loaded, &eight, sizeof eight);
    return loaded;
  }

  static __device__ __forceinline__ void unpack(const Vec<uint32_t, 4>& loaded, bool is_int8, float scale,
                                                float (&x)[8]) {
    if (is_int8) {
      Vec<int8_t, 8> eight;
      memcpy(&eight, &loaded, sizeof eight);
      for (int i = 0; i < 8; ++i) x[i] = to_float(from_float<T>(eight.at[i] * scale));
    } else {
      Eight eight;
      memcpy(&eight, &loaded, sizeof eight);
      for (int i = 0; i < 8; ++i) x[i] = to_float(eight.at[i]);
    }
  }

  // Every eight lanes take every 32nd key of a row; each warp leaves a state, [warp][8][kState] in scratch. The key
  // behind the one at hand is always on its way, be it the next row's first.
  __device__ __forceinline__ void attend_to_own_keys(const DecodeLayer& layer, KeyValue next) {
    const int first = threadIdx.x / kLanesOfKey, element = threadIdx.x % kLanesOfKey * 8;
#pragma unroll 1
    for (int number = 0; number < args_.rows; ++number) {
      const RowFacts row = facts()[number];
      const float* own = qkv() + number * 3 * kHeadDim;
      float query[8];
      SoftmaxSums<8> found;
      for (int e = 0; e < 8; ++e) query[e] = own[element + e];
      // Lanes of a warp stay together: the shuffles want all of them.
      bool last = false;
#pragma unroll 1
      for (int base = 0; !last; base += kKeysAtOnce) {
        last = base + kKeysAtOnce + first / 4 * 4 >= keys_of(row);
        const KeyValue loaded = next;
        const int next_number = last ? number + 1 : number;
        if (next_number < args_.rows) load_key(layer, next_number, last ? first : base + kKeysAtOnce + first, next);

        const int j = base + first;
        const bool valid = j < keys_of(row);
        const bool in_text = j >= prefix_of(row);
        const bool is_own = valid && in_text && token_of(row, j) == row.length - 1;
        float k[8], v[8], score = 0;
        unpack(loaded.k, !in_text && layer.k_scale, loaded.k_scale, k);
        unpack(loaded.v, !in_text && layer.k_scale, loaded.v_scale, v);
        for (int e = 0; e < 8; ++e) {
          if (is_own) k[e] = own[kHeadDim + element + e], v[e] = own[2 * kHeadDim + element + e];
          if (!valid) k[e] = v[e] = 0;
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
      store_state(found, number, element);
    }
  }

  // Merges what the four keys of a warp found.
  __device__ __forceinline__ void store_state(SoftmaxSums<8> found, int row, int element) {
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
  const DecodeShared& layout_;
  unsigned char* shared_;
  Stream& stream_;
  int warps_of_row_ = kProductWarps;
  int own_begin_, own_end_;    // columns of a layer's output that this block adds to its cluster's partial sums
  int prefix_begin_, prefix_;  // keys of a prefix in this block
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
