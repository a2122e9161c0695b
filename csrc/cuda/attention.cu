// Attention over a shared prefix and own text on tensor cores: score, softmax, accumulate; launches.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/attention.cuh"
#include "cuda/platform.h"
#include "cuda/ptx.h"
#include "cuda/warp.cuh"

namespace gitfast::cuda {
namespace {

constexpr int kKeys = 64;  // keys of one tile of the prefix
constexpr int kWarps = 4;
// Elements between rows in shared memory, which then start in different banks.
template <class E>
constexpr int kPadding = 16 / sizeof(E);

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// 16 rows over some keys in one warp, in the layout of the sums of m16n8k16: lane 4 g + t has rows g and g + 8, and of
// every 8 columns 2 t and 2 t + 1. Totals are those of the lane's own columns.
template <class T, int D, int kCount>
struct PrefixRows {
  static constexpr int kStride = D + kPadding<T>;
  OnlineSoftmax softmax[2];
  float out[D / 8][4] = {};

  // s = queries keys^T, over kCount keys.
  static __device__ __forceinline__ void score(float (&s)[kCount / 8][4], const T* queries, const T* keys) {
    const int lane = lane_of_warp();
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      uint32_t q[4];
      ldmatrix_x4(q, queries + lane % 16 * kStride + lane / 16 * 8 + d);
#pragma unroll
      for (int n = 0; n < kCount / 8; n += 2) {
        uint32_t k[4];
        ldmatrix_x4(k, keys + (n * 8 + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8 + d);
        mma_m16n8k16<T>(s[n], q, k[0], k[1]);
        mma_m16n8k16<T>(s[n + 1], q, k[2], k[3]);
      }
    }
  }

  // Turns scores into weights against the new peak, zero from key `left` on, and rescales the earlier sums.
  __device__ __forceinline__ void weigh(float (&s)[kCount / 8][4], int left, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kCount / 8; ++n)
        for (int i = 0; i < 2; ++i) {
          float& score = s[n][2 * half + i];
          score = n * 8 + lane_of_warp() % 4 * 2 + i < left ? score * scale : -INFINITY;
          top = fmaxf(top, score);
        }
      const float factor = softmax[half].raise(quad_max(top));
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        for (int i = 0; i < 2; ++i) out[n][2 * half + i] *= factor;
#pragma unroll
      for (int n = 0; n < kCount / 8; ++n)
        for (int i = 0; i < 2; ++i) {
          float& score = s[n][2 * half + i];
          score = softmax[half].weight(score);
          softmax[half].total += score;
        }
    }
  }

  // out += weights values.
  __device__ __forceinline__ void accumulate(const float (&s)[kCount / 8][4], const T* values) {
    const int lane = lane_of_warp();
#pragma unroll
    for (int n = 0; n < kCount / 8; n += 2) {
      const uint32_t p[4] = {pair_of<T>(s[n][0], s[n][1]), pair_of<T>(s[n][2], s[n][3]),
                             pair_of<T>(s[n + 1][0], s[n + 1][1]), pair_of<T>(s[n + 1][2], s[n + 1][3])};
#pragma unroll
      for (int d = 0; d < D / 8; d += 2) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, values + (n * 8 + lane % 16) * kStride + lane / 16 * 8 + d * 8);
        mma_m16n8k16<T>(out[d], p, v[0], v[1]);
        mma_m16n8k16<T>(out[d + 1], p, v[2], v[3]);
      }
    }
  }

  // Leaves the states of the rows, [16][kStateHead + D].
  __device__ __forceinline__ void store(float* states) const {
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(softmax[half].total);
      float* state = states + (g + half * 8) * (kStateHead + D);
      if (t == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {softmax[half].peak, total});
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
        store_vec(reinterpret_cast<Vec<float, 2>*>(state + kStateHead + d * 8 + t * 2),
                  {out[d][2 * half], out[d][2 * half + 1]});
    }
  }
};

// Rows [0, limit) of D elements, `stride` apart, into `rows` rows of shared memory; zeros beyond the limit.
template <class E, int D>
__device__ __forceinline__ void load_rows(E* shared, int rows, const E* from, int64_t stride, int limit) {
  constexpr int N = 16 / sizeof(E), kChunks = D / N;
#pragma unroll 4
  for (int i = threadIdx.x; i < rows * kChunks; i += kWarps * kWarpSize) {
    const int row = i / kChunks, column = i % kChunks * N;
    const bool valid = row < limit;
    cp_async16(shared + row * (D + kPadding<E>)+column, valid ? from + row * stride + column : from, valid);
  }
}

// kKeys scales; zeros beyond the limit, so that what they multiply is no NaN.
__device__ __forceinline__ void load_scales(float* shared, const float* from, int limit) {
  for (int i = threadIdx.x; i < kKeys; i += blockDim.x) cp_async4(shared + i, i < limit ? from + i : from, i < limit);
}

// Rows of D integers times their scales.
template <class T, int D>
__device__ __forceinline__ void dequantize(T* to, const int8_t* from, const float* scales, int rows) {
  for (int i = threadIdx.x; i < rows * (D / 8); i += blockDim.x) {
    const int row = i / (D / 8), column = i % (D / 8) * 8;
    const auto integers = load_vec(reinterpret_cast<const Vec<int8_t, 8>*>(from + row * (D + kPadding<int8_t>)+column));
    Vec<T, 8> values;
    for (int j = 0; j < 8; ++j) values.at[j] = from_float<T>(integers.at[j] * scales[row]);
    store_vec(reinterpret_cast<Vec<T, 8>*>(to + row * (D + kPadding<T>)+column), values);
  }
}

// One row over its text, by one warp: a lane scores a token of every 32, and sums the values of pairs of columns.
template <class T, int D>
struct TextRow {
  static constexpr int kPairs = (D / 2 + kWarpSize - 1) / kWarpSize;  // of a lane: columns 2 lane + 64 i
  SoftmaxSums<2 * kPairs> sums;                                       // the total is that of the lane's own tokens

  // A token's score, in base 2; `entry` is its key in the store.
  static __device__ __forceinline__ float score(const PrefixAttention& args, const T* query, int64_t entry) {
    const T* key = static_cast<const T*>(args.k_text) + (entry * args.heads + blockIdx.y) * D;
    float sum = 0;
#pragma unroll
    for (int d = 0; d < D; d += 8) {
      const auto k = load_vec(reinterpret_cast<const Vec<T, 8>*>(key + d));
      const auto q = load_vec(reinterpret_cast<const Vec<T, 8>*>(query + d));
      for (int i = 0; i < 8; ++i) sum = fmaf(to_float(q.at[i]), to_float(k.at[i]), sum);
    }
    return sum * args.scale * kLog2E;
  }

  // Returns the weight of the lane's score against the new peak.
  __device__ __forceinline__ float weigh(float score) {
    float top = score;
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, lanes));
    sums.rescale(top);
    const float weight = sums.weight(score);
    sums.total += weight;
    return weight;
  }

  // Adds the values of the tokens of the first `tokens` lanes.
  __device__ __forceinline__ void accumulate(const PrefixAttention& args, int64_t entry, float weight, int tokens) {
    const T* values = static_cast<const T*>(args.v_text) + int64_t{blockIdx.y} * D + lane_of_warp() * 2;
#pragma unroll 8
    for (int k = 0; k < tokens; ++k) {
      const float of_token = __shfl_sync(kAllLanes, weight, k);
      const T* value = values + __shfl_sync(kAllLanes, entry, k) * args.heads * D;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        if (lane_of_warp() * 2 + i * 64 >= D) continue;
        const auto v = load_vec(reinterpret_cast<const Vec<T, 2>*>(value + i * 64));
        for (int j = 0; j < 2; ++j) sums.sums[2 * i + j] = fmaf(of_token, to_float(v.at[j]), sums.sums[2 * i + j]);
      }
    }
  }

  __device__ __forceinline__ void attend(const PrefixAttention& args, const T* query, int64_t row) {
    const int length = args.text_len[row], lane = lane_of_warp();
    for (int begin = 0; begin < length; begin += kWarpSize) {
      const int left = length - begin, tokens = left < kWarpSize ? left : kWarpSize;
      const int64_t entry = lane < tokens ? args.kv_index[row * args.max_text + begin + lane] : 0;
      const float weight = weigh(lane < tokens ? score(args, query, entry) : -INFINITY);
      accumulate(args, entry, weight, tokens);
    }
  }

  // Leaves the row's state, [kStateHead + D].
  __device__ __forceinline__ void store(float* state) const {
    const int lane = lane_of_warp();
    const float total = sum_of_warp(sums.total);
    if (lane == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {sums.peak, total});
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (lane * 2 + i * 64 < D)
        store_vec(reinterpret_cast<Vec<float, 2>*>(state + kStateHead + lane * 2 + i * 64),
                  {sums.sums[2 * i], sums.sums[2 * i + 1]});
  }
};

// Shared memory of a block, in this order, in elements of each part's type. P is T, or int8_t. Warps are kRowWarps
// times as many as share 16 rows; those have keys of their own of every tile.
template <class T, class P, int D, int kRowWarps>
struct Shared {
  static constexpr bool kQuantized = !std::is_same_v<T, P>;
  static constexpr int kRows = 16 * kRowWarps, kKeyWarps = kWarps / kRowWarps;
  static constexpr int kStride = D + kPadding<T>, kPrefixStride = D + kPadding<P>, kState = kStateHead + D;
  static constexpr int kQueries = kRows * kStride;                    // T [kRows][kStride]
  static constexpr int kText = kRows * kState;                        // float [kRows][kState]: states over text
  static constexpr int kStage = 2 * kKeys * kPrefixStride;            // P [2][keys, values][kKeys][kPrefixStride]
  static constexpr int kTile = kQuantized ? 2 * kKeys * kStride : 0;  // T [keys, values][kKeys][kStride]
  static constexpr int kScales = kQuantized ? 2 * kKeys : 0;          // float [2][keys, values][kKeys]
  // float [kKeyWarps][kRows][kState], where the stages and the tile were: states over the prefix
  static constexpr size_t kStates = size_t{kKeyWarps} * kRows * kState * sizeof(float);
  static constexpr size_t kBuffers = 2 * kStage * sizeof(P) + kTile * sizeof(T) + 2 * kScales * sizeof(float);
  static constexpr size_t kBytes =
      kQueries * sizeof(T) + kText * sizeof(float) + (kBuffers > kStates ? kBuffers : kStates);
};

// One block per tile of rows, head and split.
template <class T, class P, int D, int kRowWarps>
class AttentionBlock {
  using Parts = Shared<T, P, D, kRowWarps>;
  static constexpr int kStride = Parts::kStride, kPrefixStride = Parts::kPrefixStride, kState = Parts::kState;
  static constexpr int kWarpKeys = kKeys / Parts::kKeyWarps;

 public:
  __device__ __forceinline__ AttentionBlock(const PrefixAttention& args, unsigned char* shared)
      : args_(args),
        queries_(reinterpret_cast<T*>(shared)),
        text_(reinterpret_cast<float*>(queries_ + Parts::kQueries)),
        stages_(reinterpret_cast<P*>(text_ + Parts::kText)),
        tile_(reinterpret_cast<T*>(stages_ + 2 * Parts::kStage)),
        scales_(reinterpret_cast<float*>(tile_ + Parts::kTile)),
        states_(reinterpret_cast<float*>(stages_)),
        first_(args.tile_list[3 * blockIdx.x]),
        count_(args.tile_list[3 * blockIdx.x + 1]),
        image_(args.tile_list[3 * blockIdx.x + 2]) {}

  __device__ __forceinline__ void run() {
    if (image_ < 0) return;
    const bool text = has_text(args_);
    if (text && args_.k_new) store_new<T>(args_, first_, count_);
    const T* q = static_cast<const T*>(args_.q) + first_ * args_.q_stride + int64_t{blockIdx.y} * D;
    load_rows<T, D>(queries_, Parts::kRows, q, args_.q_stride, count_);
    cp_async_commit();
    const KeyRange keys = keys_of_split(args_, kKeys);
    if (keys.count > 0) load(keys, 0);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();             // all queries are there, and the new keys and values
    if (text) attend_to_text();  // while the first keys of the prefix are on their way
    attend_to_prefix(keys);
    __syncthreads();  // all states are stored
    merge(text);
    if (gridDim.z > 1 && all_splits_stored(args_, reinterpret_cast<int*>(queries_)))
      merge_splits<T>(args_, first_, count_);
  }

 private:
  // Sets tile `step` of the keys and values on its way.
  __device__ __forceinline__ void load(const KeyRange& keys, int step) {
    P* stage = stages_ + step % 2 * Parts::kStage;
    const int64_t token = (image_ * args_.heads + blockIdx.y) * args_.prefix_len + keys.begin + step * kKeys;
    const int left = keys.count - step * kKeys;
    load_rows<P, D>(stage, kKeys, static_cast<const P*>(args_.k_prefix) + token * D, D, left);
    load_rows<P, D>(stage + kKeys * kPrefixStride, kKeys, static_cast<const P*>(args_.v_prefix) + token * D, D, left);
    if constexpr (Parts::kQuantized) {
      float* scales = scales_ + step % 2 * Parts::kScales;
      load_scales(scales, args_.k_scale + token, left);
      load_scales(scales + kKeys, args_.v_scale + token, left);
    }
  }

  // Keys, and kKeys rows behind them values, of a tile that is there.
  __device__ __forceinline__ const T* keys_of_tile(int step) {
    P* stage = stages_ + step % 2 * Parts::kStage;
    if constexpr (Parts::kQuantized) {
      const float* scales = scales_ + step % 2 * Parts::kScales;
      dequantize<T, D>(tile_, stage, scales, kKeys);
      dequantize<T, D>(tile_ + kKeys * kStride, stage + kKeys * kPrefixStride, scales + kKeys, kKeys);
      __syncthreads();  // the tile is whole
      return tile_;
    } else {
      return stage;
    }
  }

  __device__ __forceinline__ void attend_to_text() {
    for (int row = threadIdx.x / kWarpSize; row < count_; row += kWarps) {
      TextRow<T, D> sums;
      sums.attend(args_, queries_ + row * kStride, first_ + row);
      sums.store(text_ + row * kState);
    }
  }

  __device__ __forceinline__ void attend_to_prefix(const KeyRange& keys) {
    const int warp = threadIdx.x / kWarpSize, row0 = warp / Parts::kKeyWarps * 16;
    const int key0 = warp % Parts::kKeyWarps * kWarpKeys;  // of this warp, in every tile
    PrefixRows<T, D, kWarpKeys> rows;
    for (int step = 0; step * kKeys < keys.count; ++step) {
      if ((step + 1) * kKeys < keys.count) load(keys, step + 1);
      cp_async_commit();
      cp_async_wait<1>();
      __syncthreads();  // the tile is there
      const T* tile = keys_of_tile(step);
      const int left = keys.count - step * kKeys - key0;
      float s[kWarpKeys / 8][4] = {};
      rows.score(s, queries_ + row0 * kStride, tile + key0 * kStride);
      rows.weigh(s, left, args_.scale * kLog2E);
      rows.accumulate(s, tile + (kKeys + key0) * kStride);
      __syncthreads();  // before the next copies land in these tiles
    }
    rows.store(states_ + (warp % Parts::kKeyWarps * Parts::kRows + row0) * kState);
  }

  // Merges the states of the warps over their keys of the prefix, and of text, into the result of the block.
  __device__ __forceinline__ void merge(bool text) {
    constexpr int kChunks = D / 4;
    for (int i = threadIdx.x; i < count_ * kChunks; i += blockDim.x) {
      const int row = i / kChunks, column = i % kChunks * 4;
      SoftmaxSums<4> all;
#pragma unroll
      for (int warp = 0; warp < Parts::kKeyWarps; ++warp)
        all.merge(load_state<4>(states_ + (warp * Parts::kRows + row) * kState, column));
      if (text) all.merge(load_state<4>(text_ + row * kState, column));
      store_found<T>(args_, first_ + row, column, all);
    }
  }

  const PrefixAttention& args_;
  T* queries_;
  float* text_;
  P* stages_;
  T* tile_;
  float *scales_, *states_;
  const int first_, count_;
  const int64_t image_;
};

template <class T, class P, int D, int kRowWarps>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    prefix_attention_kernel(const __grid_constant__ PrefixAttention args) {
  GITFAST_SHARED(unsigned char, shared);
  let_next_kernel_start();
  wait_for_previous_kernel();
  AttentionBlock<T, P, D, kRowWarps>(args, shared).run();
}

template <class T, class P, int D, int kRowWarps>
void launch(const PrefixAttention& args, cudaStream_t stream) {
  const dim3 grid(args.tiles, args.heads, args.splits);
  launch_kernel({"prefix_attention_kernel", grid, dim3(kWarps * kWarpSize), Shared<T, P, D, kRowWarps>::kBytes, stream,
                 args.overlap},
                prefix_attention_kernel<T, P, D, kRowWarps>, args);
}

template <class T, int D, class P = T>
void choose_tile(const PrefixAttention& args, cudaStream_t stream) {
  args.tile_rows == 16 ? launch<T, P, D, 1>(args, stream) : launch<T, P, D, kWarps>(args, stream);
}

template <class T>
void choose_width(const PrefixAttention& args, cudaStream_t stream) {
  if (args.k_scale) {
    if (args.head_dim != kInt8HeadDim)
      throw Error("k_prefix: expected a head_dim of 64 for int8, got " + std::to_string(args.head_dim));
    return choose_tile<T, 64, int8_t>(args, stream);
  }
  switch (args.head_dim) {
    case 16:
      return choose_tile<T, 16>(args, stream);
    case 64:
      return choose_tile<T, 64>(args, stream);
#ifndef GITFAST_FEW_HEAD_DIMS  // for tests that compile this many times
    case 32:
      return choose_tile<T, 32>(args, stream);
    case 80:
      return choose_tile<T, 80>(args, stream);
    case 128:
      return choose_tile<T, 128>(args, stream);
#endif
  }
  throw Error("q: expected a head_dim of 16, 32, 64, 80 or 128, got " + std::to_string(args.head_dim));
}

void check_aligned(const char* name, const void* pointer, int64_t stride_bytes) {
  if (!aligned(pointer, stride_bytes, 16))
    throw Error(std::string(name) + ": expected rows that start at multiples of 16 bytes");
}

}  // namespace

size_t workspace_bytes(const PrefixAttention& args) {
  if (args.splits < 1 || args.splits > kMaxSplits)
    throw Error("splits: expected 1 to " + std::to_string(kMaxSplits) + ", got " + std::to_string(args.splits));
  if (args.splits == 1) return 0;
  if (args.tiles * args.heads > kCounters)
    throw Error("splits: expected 1 for more than " + std::to_string(kCounters) + " tiles x heads, got " +
                std::to_string(args.splits));
  return (kCounters + args.splits * args.rows * args.heads * (args.head_dim + kStateHead)) * sizeof(float);
}

void prefix_attention(const PrefixAttention& args, CUstream_st* stream) {
  if (args.tile_rows != 16 && args.tile_rows != 64)
    throw Error("tile_rows: expected 16 or 64, got " + std::to_string(args.tile_rows));
  if (workspace_bytes(args) > 0 && !args.workspace) throw Error("workspace: expected one for more than one split");
  const auto size = static_cast<int64_t>(dtype_size(args.dtype));
  check_aligned("q", args.q, args.q_stride * size);
  check_aligned("out", args.out, args.out_stride * size);
  check_aligned("k_new", args.k_new, args.new_stride * size);
  check_aligned("v_new", args.v_new, args.new_stride * size);
  check_aligned("k_prefix", args.k_prefix, 0);
  check_aligned("v_prefix", args.v_prefix, 0);
  check_aligned("k_text", args.k_text, 0);
  check_aligned("v_text", args.v_text, 0);
  check_aligned("workspace", args.workspace, 0);
  if (args.tiles == 0) return;
  const DeviceScope device(args.device);
  if (args.dtype == DType::f32 && args.k_scale) throw Error("k_prefix: int8 is for float16 and bfloat16 only");
  if (args.dtype == DType::f32) return prefix_attention_f32(args, stream);
  if (args.dtype == DType::f16) return choose_width<__half>(args, stream);
  if (args.dtype == DType::bf16) return choose_width<__nv_bfloat16>(args, stream);
  throw Error(std::string("q: expected float32, float16 or bfloat16, got ") + dtype_name(args.dtype));
}

}  // namespace gitfast::cuda
