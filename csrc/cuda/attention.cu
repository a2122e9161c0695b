#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/attention.cuh"
#include "cuda/platform.h"
#include "cuda/ptx.h"

namespace gitfast::cuda {
namespace {

constexpr int kKeys = 64;      // keys of one tile of the prefix
constexpr int kTextKeys = 32;  // text tokens of a row that are scored at once, one per lane
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

// The state of 16 rows in one warp, in the layout of the sums of m16n8k16: lane 4 g + t has rows g and g + 8, and of
// every 8 columns 2 t and 2 t + 1.
template <int D>
struct Rows {
  float peak[2] = {-INFINITY, -INFINITY};  // of the scores so far, in base 2
  float total[2] = {};                     // of the numerators in this lane
  float out[D / 8][4] = {};

  // Scores, in base 2, become numerators against the new peak; what there was is scaled to it.
  template <int N>
  __device__ __forceinline__ void admit(float (&s)[N][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < N; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      top = fmaxf(peak[half], quad_max(top));
      const float base = top == -INFINITY ? 0.0f : top;  // a row that has seen no key yet
      const float factor = exp2f(peak[half] - base);
      peak[half] = top;
      total[half] *= factor;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        for (int i = 0; i < 2; ++i) out[n][2 * half + i] *= factor;
#pragma unroll
      for (int n = 0; n < N; ++n)
        for (int i = 0; i < 2; ++i) {
          float& score = s[n][2 * half + i];
          score = exp2f(score - base);
          total[half] += score;
        }
    }
  }
};

// Rows [0, limit) of D elements, `stride` apart, into `rows` rows of shared memory; zeros beyond the limit.
template <class E, int D>
__device__ __forceinline__ void load_rows(E* shared, int rows, const E* from, int64_t stride, int limit) {
  constexpr int N = 16 / sizeof(E);
  for (int i = threadIdx.x; i < rows * (D / N); i += blockDim.x) {
    const int row = i / (D / N), column = i % (D / N) * N;
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

// The scores of 16 rows over the text: each lane one token of a row; -inf beyond the row's end.
template <class T, int D>
__device__ void score_text(const PrefixAttention& args, const T* query, int first, int rows, int begin, float* scores) {
  const int lane = threadIdx.x % kWarpSize, head = blockIdx.y;
  for (int r = 0; r < 16; ++r) {
    float score = -INFINITY;
    if (r < rows && begin + lane < args.text_len[first + r]) {
      const int64_t entry = args.kv_index[(first + r) * args.max_text + begin + lane];
      const T* key = static_cast<const T*>(args.k_text) + (entry * args.heads + head) * D;
      score = 0;
      for (int d = 0; d < D; d += 8) {
        const Vec<T, 8> k = load_vec(reinterpret_cast<const Vec<T, 8>*>(key + d));
        const Vec<T, 8> q = load_vec(reinterpret_cast<const Vec<T, 8>*>(query + r * (D + kPadding<T>)+d));
        for (int i = 0; i < 8; ++i) score += to_float(q.at[i]) * to_float(k.at[i]);
      }
      score *= args.scale * kLog2E;
    }
    scores[r * kTextKeys + lane] = score;
  }
}

// Shared memory of a block, in this order, in elements of each part's type. P is T, or int8_t.
template <class T, class P, int D, int kWarps>
struct Shared {
  static constexpr bool kQuantized = !std::is_same_v<T, P>;
  static constexpr int kStride = D + kPadding<T>, kPrefixStride = D + kPadding<P>;
  static constexpr int kQueries = 16 * kWarps * kStride;              // T [16 kWarps][kStride]
  static constexpr int kStage = 2 * kKeys * kPrefixStride;            // P [2][keys, values][kKeys][kPrefixStride]
  static constexpr int kTile = kQuantized ? 2 * kKeys * kStride : 0;  // T [keys, values][kKeys][kStride]
  static constexpr int kScales = kQuantized ? 2 * kKeys : 0;          // float [2][keys, values][kKeys]
  static constexpr int kScores = 16 * kWarps * kTextKeys;             // float [16 kWarps][kTextKeys]
  static constexpr size_t kBytes =
      (kQueries + kTile) * sizeof(T) + 2 * kStage * sizeof(P) + (2 * kScales + kScores) * sizeof(float);
};

// One block per tile of rows, head and split, one warp per 16 rows.
template <class T, class P, int D, int kWarps>
__global__ void prefix_attention_kernel(PrefixAttention args) {
  GITFAST_SHARED(T, shared);
  let_next_kernel_start();
  wait_for_previous_kernel();
  using Parts = Shared<T, P, D, kWarps>;
  constexpr int kStride = Parts::kStride, kPrefixStride = Parts::kPrefixStride, kStage = Parts::kStage;
  T* queries = shared;
  P* stages = reinterpret_cast<P*>(shared + Parts::kQueries);
  T* tile = reinterpret_cast<T*>(stages + 2 * kStage);
  float* scales = reinterpret_cast<float*>(tile + Parts::kTile);
  float* all_scores = scales + 2 * Parts::kScales;
  const int first = args.tile_list[3 * blockIdx.x], count = args.tile_list[3 * blockIdx.x + 1];
  const int64_t image = args.tile_list[3 * blockIdx.x + 2];
  if (image < 0) return;
  const int head = blockIdx.y, warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t head_at = int64_t{head} * D, text_stride = args.heads * D;
  if (has_text(args) && args.k_new) store_new<T>(args, first, count);

  const KeyRange keys_here = keys_of_split(args, kKeys);
  const int64_t token_at = (image * args.heads + head) * args.prefix_len + keys_here.begin, prefix_at = token_at * D;
  const int prefix_len = keys_here.count, steps = (prefix_len + kKeys - 1) / kKeys;
  const auto load = [&](int step) {
    P* stage = stages + step % 2 * kStage;
    const int64_t at = prefix_at + int64_t{step} * kKeys * D;
    const int left = prefix_len - step * kKeys;
    load_rows<P, D>(stage, kKeys, static_cast<const P*>(args.k_prefix) + at, D, left);
    load_rows<P, D>(stage + kKeys * kPrefixStride, kKeys, static_cast<const P*>(args.v_prefix) + at, D, left);
    if constexpr (Parts::kQuantized) {
      float* stage_scales = scales + step % 2 * Parts::kScales;
      load_scales(stage_scales, args.k_scale + token_at + step * kKeys, left);
      load_scales(stage_scales + kKeys, args.v_scale + token_at + step * kKeys, left);
    }
  };
  load_rows<T, D>(queries, 16 * kWarps, static_cast<const T*>(args.q) + first * args.q_stride + head_at, args.q_stride,
                  count);
  if (steps > 0) load(0);
  cp_async_commit();

  Rows<D> rows;
  const T* mine = queries + warp * 16 * kStride;
  const float scale = args.scale * kLog2E;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const P* stage = stages + step % 2 * kStage;
    const T* keys;
    if constexpr (Parts::kQuantized) {
      const float* stage_scales = scales + step % 2 * Parts::kScales;
      dequantize<T, D>(tile, stage, stage_scales, kKeys);
      dequantize<T, D>(tile + kKeys * kStride, stage + kKeys * kPrefixStride, stage_scales + kKeys, kKeys);
      __syncthreads();
      keys = tile;
    } else {
      keys = stage;
    }
    const T* values = keys + kKeys * kStride;
    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      uint32_t q[4];
      ldmatrix_x4(q, mine + lane % 16 * kStride + lane / 16 * 8 + d);
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        uint32_t k[4];
        ldmatrix_x4(k, keys + (n * 8 + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8 + d);
        mma_m16n8k16<T>(s[n], q, k[0], k[1]);
        mma_m16n8k16<T>(s[n + 1], q, k[2], k[3]);
      }
    }
    const int left = prefix_len - step * kKeys;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
      for (int i = 0; i < 4; ++i) s[n][i] = n * 8 + lane % 4 * 2 + i % 2 < left ? s[n][i] * scale : -INFINITY;
    rows.admit(s);
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
      const uint32_t p[4] = {pair_of<T>(s[n][0], s[n][1]), pair_of<T>(s[n][2], s[n][3]),
                             pair_of<T>(s[n + 1][0], s[n + 1][1]), pair_of<T>(s[n + 1][2], s[n + 1][3])};
#pragma unroll
      for (int d = 0; d < D / 8; d += 2) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, values + (n * 8 + lane % 16) * kStride + lane / 16 * 8 + d * 8);
        mma_m16n8k16<T>(rows.out[d], p, v[0], v[1]);
        mma_m16n8k16<T>(rows.out[d + 1], p, v[2], v[3]);
      }
    }
    __syncthreads();  // before the next copies land in these tiles
  }
  if (steps == 0) {
    cp_async_wait<0>();
    __syncthreads();
  }

  const int left = count - warp * 16;
  const int own = left < 0 ? 0 : left < 16 ? left : 16;  // rows of this warp that exist
  const int row0 = first + warp * 16;
  float* scores = all_scores + warp * 16 * kTextKeys;
  int longest = 0;
  for (int r = 0; r < own && has_text(args); ++r) {
    const int length = args.text_len[row0 + r];
    longest = length > longest ? length : longest;
  }
  for (int begin = 0; begin < longest; begin += kTextKeys) {
    score_text<T, D>(args, mine, row0, own, begin, scores);
    __syncwarp();
    const int g = lane / 4, t = lane % 4;
    float s[kTextKeys / 8][4];  // each score is read, and its weight written, by one lane
    for (int n = 0; n < kTextKeys / 8; ++n)
      for (int i = 0; i < 4; ++i) s[n][i] = scores[(g + i / 2 * 8) * kTextKeys + n * 8 + t * 2 + i % 2];
    rows.admit(s);
    for (int n = 0; n < kTextKeys / 8; ++n)
      for (int i = 0; i < 4; ++i) scores[(g + i / 2 * 8) * kTextKeys + n * 8 + t * 2 + i % 2] = s[n][i];
    __syncwarp();
    for (int half = 0; half < 2; ++half) {
      const int r = g + half * 8;
      const int more = r < own ? args.text_len[row0 + r] - begin : 0;
      const int tokens = more < kTextKeys ? more : kTextKeys;
      for (int k = 0; k < tokens; ++k) {
        const int64_t entry = args.kv_index[(row0 + r) * args.max_text + begin + k];
        const T* value = static_cast<const T*>(args.v_text) + entry * text_stride + head_at + t * 2;
        const float weight = scores[r * kTextKeys + k];
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
          const Vec<T, 2> v = load_vec(reinterpret_cast<const Vec<T, 2>*>(value + d * 8));
          for (int i = 0; i < 2; ++i) rows.out[d][2 * half + i] += weight * to_float(v.at[i]);
        }
      }
    }
    __syncwarp();  // before the next scores
  }

  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(rows.total[half]);
    const int r = lane / 4 + half * 8;
    if (r >= own) continue;
    if (gridDim.z > 1) {
      float* state = state_of(args, blockIdx.z, row0 + r, head);
      if (lane % 4 == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {rows.peak[half], total});
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
        store_vec(reinterpret_cast<Vec<float, 2>*>(state + kStateHead + d * 8 + lane % 4 * 2),
                  {rows.out[d][2 * half], rows.out[d][2 * half + 1]});
      continue;
    }
    const float inverse = inverse_of(total);
    T* out = static_cast<T*>(args.out) + (row0 + r) * args.out_stride + head_at + lane % 4 * 2;
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      Vec<T, 2> pair;
      for (int i = 0; i < 2; ++i) pair.at[i] = from_float<T>(rows.out[d][2 * half + i] * inverse);
      store_vec(reinterpret_cast<Vec<T, 2>*>(out + d * 8), pair);
    }
  }
  if (gridDim.z > 1 && all_splits_stored(args, reinterpret_cast<int*>(shared))) merge_splits<T>(args, first, count);
}

template <class T, class P, int D, int kWarps>
void launch(const PrefixAttention& args, cudaStream_t stream) {
  const dim3 grid(args.tiles, args.heads, args.splits);
  launch_kernel({"prefix_attention_kernel", grid, dim3(kWarps * kWarpSize), Shared<T, P, D, kWarps>::kBytes, stream,
                 args.overlap},
                prefix_attention_kernel<T, P, D, kWarps>, args);
}

template <class T, int D, class P = T>
void choose_tile(const PrefixAttention& args, cudaStream_t stream) {
  args.tile_rows == 16 ? launch<T, P, D, 1>(args, stream) : launch<T, P, D, 4>(args, stream);
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
