// What the attention kernels share: storing new keys and values, and merging what the blocks of a split prefix found.
//
// A workspace is kCounters counters, one per tile and head, then the states (splits, R, H, kStateHead + head_dim): the
// peak of a row's scores in base 2, the total of its numerators, two floats unused, and the sums of values. The
// counters do not move with the shapes, so that launches of different shapes leave zeros where the next one counts.
#pragma once

#include "cuda/attention.h"
#include "cuda/softmax.cuh"

namespace gitfast::cuda {

constexpr int64_t kCounters = kMaxSplitTiles;
constexpr int kStateHead = 4;

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

// What the sums of values are multiplied with: 0 for a row that saw no key, NaN stays.
__device__ __forceinline__ float inverse_of(float total) {
  return total > 0 ? 1.0f / total : total == 0 ? 0.0f : total;
}

__device__ __forceinline__ float* state_of(const PrefixAttention& args, int split, int64_t row, int head) {
  const int64_t index = (split * args.rows + row) * args.heads + head;
  return static_cast<float*>(args.workspace) + kCounters + index * (args.head_dim + kStateHead);
}

// For all threads of a block whose states are stored: whether it is the last of its tile and head, and sees those of
// all.
__device__ __forceinline__ bool all_splits_stored(const PrefixAttention& args, int* shared) {
  __syncthreads();  // before the fence: every state of this block
  if (threadIdx.x == 0) {
    auto* counter = static_cast<unsigned*>(args.workspace) + blockIdx.x * gridDim.y + blockIdx.y;
    const unsigned last = gridDim.z - 1;
    __threadfence();
    const unsigned before = atomicInc(counter, last);  // wraps to 0, ready for the next launch
    __threadfence();
    *shared = before == last;
  }
  __syncthreads();
  return *shared != 0;
}

// Results of rows [first, first + count) from their states, in the order of the splits.
template <class T>
__device__ __forceinline__ void merge_splits(const PrefixAttention& args, int first, int count) {
  const int width = static_cast<int>(args.head_dim), chunks = width / 4, splits = gridDim.z;
  for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) {
    const int64_t row = first + i / chunks;
    const int column = i % chunks * 4;
    float peak = -INFINITY, total = 0, sums[4] = {};
#pragma unroll 4
    for (int split = 0; split < splits; ++split) {
      const float* state = state_of(args, split, row, blockIdx.y);
      const auto part = load_vec(reinterpret_cast<const Vec<float, 2>*>(state));  // peak, total
      const auto part_sums = load_vec(reinterpret_cast<const Vec<float, 4>*>(state + kStateHead + column));
      const CommonPeak common = common_peak(peak, part.at[0]);
      peak = common.peak;
      total = fmaf(total, common.first, part.at[1] * common.second);
      for (int j = 0; j < 4; ++j) sums[j] = fmaf(sums[j], common.first, part_sums.at[j] * common.second);
    }
    const float inverse = inverse_of(total);
    Vec<T, 4> result;
    for (int j = 0; j < 4; ++j) result.at[j] = from_float<T>(sums[j] * inverse);
    T* out = static_cast<T*>(args.out) + row * args.out_stride + int64_t{blockIdx.y} * width + column;
    store_vec(reinterpret_cast<Vec<T, 4>*>(out), result);
  }
}

}  // namespace gitfast::cuda
