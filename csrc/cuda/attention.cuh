// Parts of both attention kernels: storing new keys and values, and merging the states of a split prefix.
//
// A workspace is kCounters counters, one per tile and head, then the states (splits, R, H, kStateHead + head_dim) of
// cuda/softmax.cuh. The counters do not move with the shapes, so that launches of different shapes leave zeros where
// the next one counts.
#pragma once

#include "cuda/attention.h"
#include "cuda/ptx.h"
#include "cuda/softmax.cuh"

namespace gitfast::cuda {

constexpr int64_t kCounters = kMaxSplitTiles;

// attention_f32.cu: prefix_attention for float32, whose arguments are checked but for head_dim.
void prefix_attention_f32(const PrefixAttention& args, CUstream_st* stream);

struct KeyRange {
  int begin, count;
};

// The keys of the prefix that this block's split has: tiles of `tile` keys, shared out evenly.
__device__ __forceinline__ KeyRange keys_of_split(const PrefixAttention& args, int tile) {
  const int length = static_cast<int>(args.prefix_len), tiles = (length + tile - 1) / tile;
  const int begin = tiles * blockIdx.z / gridDim.z * tile, end = tiles * (blockIdx.z + 1) / gridDim.z * tile;
  return {begin, (end < length ? end : length) - begin};
}

__device__ __forceinline__ bool has_text(const PrefixAttention& args) {
  return args.text_len && blockIdx.z == gridDim.z - 1;
}

// Stores the last text tokens' keys and values of rows [first, first + count) in their entries of the store.
template <class T>
__device__ __forceinline__ void store_new(const PrefixAttention& args, int first, int count) {
  constexpr int N = 16 / sizeof(T);
  const int width = static_cast<int>(args.head_dim), chunks = width / N;
  for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) {
    const int64_t row = first + i / chunks, column = int64_t{blockIdx.y} * width + i % chunks * N;
    const int64_t entry = args.kv_index[row * args.max_text + args.text_len[row] - 1];
    const auto move = [&](const void* from, void* to) {
      const T* source = static_cast<const T*>(from) + row * args.new_stride + column;
      T* target = static_cast<T*>(to) + entry * args.heads * width + column;
      store_vec(reinterpret_cast<Vec<T, N>*>(target), load_vec(reinterpret_cast<const Vec<T, N>*>(source)));
    };
    move(args.k_new, args.k_text);
    move(args.v_new, args.v_text);
  }
}

__device__ __forceinline__ float* state_of(const PrefixAttention& args, int split, int64_t row, int head) {
  const int64_t index = (split * args.rows + row) * args.heads + head;
  return static_cast<float*>(args.workspace) + kCounters + index * (args.head_dim + kStateHead);
}

// For all threads of a block whose states are stored: whether it is the last of its tile and head, and sees those of
// all.
__device__ __forceinline__ bool all_splits_stored(const PrefixAttention& args, int* shared) {
  __syncthreads();  // before the count: every state of this block
  if (threadIdx.x == 0) {
    auto* counter = static_cast<unsigned*>(args.workspace) + blockIdx.x * gridDim.y + blockIdx.y;
    const unsigned last = gridDim.z - 1;
    *shared = increment_acq_rel(counter, last) == last;  // wraps to 0, ready for the next launch
  }
  __syncthreads();
  return *shared != 0;
}

// Stores four columns of a row's state, from `column` on.
__device__ __forceinline__ void store_state(float* state, int column, const SoftmaxSums<4>& row) {
  if (column == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {row.peak, row.total});
  store_vec(reinterpret_cast<Vec<float, 4>*>(state + kStateHead + column),
            {row.sums[0], row.sums[1], row.sums[2], row.sums[3]});
}

// Stores four columns of a row's result, from `column` of its head on.
template <class T>
__device__ __forceinline__ void store_result(const PrefixAttention& args, int64_t row, int column,
                                             const SoftmaxSums<4>& sums) {
  const float factor = sums.normalise();
  Vec<T, 4> result;
  for (int j = 0; j < 4; ++j) result.at[j] = from_float<T>(sums.sums[j] * factor);
  T* out = static_cast<T*>(args.out) + row * args.out_stride + int64_t{blockIdx.y} * args.head_dim + column;
  store_vec(reinterpret_cast<Vec<T, 4>*>(out), result);
}

// Stores four columns of this block's result, or of its state where other blocks have parts of the prefix.
template <class T>
__device__ __forceinline__ void store_found(const PrefixAttention& args, int64_t row, int column,
                                            const SoftmaxSums<4>& found) {
  if (gridDim.z > 1) return store_state(state_of(args, blockIdx.z, row, blockIdx.y), column, found);
  store_result<T>(args, row, column, found);
}

// The results of rows [first, first + count) from their states, in the order of the splits.
template <class T>
__device__ __forceinline__ void merge_splits(const PrefixAttention& args, int first, int count) {
  const int chunks = static_cast<int>(args.head_dim) / 4, splits = gridDim.z;
  for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) {
    const int64_t row = first + i / chunks;
    const int column = i % chunks * 4;
    SoftmaxSums<4> all;
#pragma unroll 4
    for (int split = 0; split < splits; ++split)
      all.merge(load_state<4>(state_of(args, split, row, blockIdx.y), column));
    store_result<T>(args, row, column, all);
  }
}

}  // namespace gitfast::cuda
