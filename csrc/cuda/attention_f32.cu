// Attention over a shared prefix and own text in float32, without tensor cores.
#include "cuda/attention.cuh"
#include "cuda/ptx.h"
#include "cuda/warp.cuh"

namespace gitfast::cuda {
namespace {

constexpr int kKeys = kWarpSize;  // of one tile of the prefix, and of the text scored at once: one per lane
constexpr int kRows = 4;          // of one warp
constexpr int kMaxWidth = 128;    // of a head
constexpr int kPadding = 4;       // elements between rows in shared memory, which then start in different banks

// A row in one warp: lane i has columns i, i + 32, ... of the sums, and the total of its own keys.
struct Row : SoftmaxSums<kMaxWidth / kWarpSize> {
  // One key per lane: its score, in base 2, becomes its weight against the new peak; what there was is rescaled.
  __device__ __forceinline__ float weigh(float score) {
    float top = score;
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, lanes));
    rescale(top);
    const float own = weight(score);
    total += own;
    return own;
  }

  // Adds the values of the first `keys` lanes' keys; value(k) points to those of key k.
  template <class Value>
  __device__ __forceinline__ void accumulate(float own, int keys, int width, const Value& value) {
    const int lane = threadIdx.x % kWarpSize;
    for (int k = 0; k < keys; ++k) {
      const float* from = value(k);
      const float of_key = __shfl_sync(kAllLanes, own, k);
#pragma unroll
      for (int i = 0; i < kMaxWidth / kWarpSize; ++i) {
        const int column = lane + i * kWarpSize;
        if (column < width) sums[i] = fmaf(of_key, from[column], sums[i]);
      }
    }
  }
};

using Four = Vec<float, 4>;

__device__ __forceinline__ float dot(const float* a, const float* b, int width) {
  float sum = 0;
  for (int d = 0; d < width; d += 4) {
    const Four x = load_vec(reinterpret_cast<const Four*>(a + d)), y = load_vec(reinterpret_cast<const Four*>(b + d));
    for (int i = 0; i < 4; ++i) sum = fmaf(x.at[i], y.at[i], sum);
  }
  return sum;
}

// `rows` rows of `width` elements, `stride` apart, into shared memory.
__device__ __forceinline__ void load_rows(float* shared, const float* from, int64_t stride, int rows, int width) {
  const int chunks = width / 4;
  for (int i = threadIdx.x; i < rows * chunks; i += blockDim.x) {
    const int row = i / chunks, column = i % chunks * 4;
    store_vec(reinterpret_cast<Four*>(shared + row * (width + kPadding) + column),
              load_vec(reinterpret_cast<const Four*>(from + row * stride + column)));
  }
}

// One block per tile of rows, head and split, one warp per kRows rows.
__global__ void prefix_attention_f32_kernel(PrefixAttention args) {
  GITFAST_SHARED(float, shared);
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int width = static_cast<int>(args.head_dim), stride = width + kPadding;
  float* queries = shared;                               // [tile_rows][stride]
  float* keys = queries + int(args.tile_rows) * stride;  // [kKeys][stride]
  float* values = keys + kKeys * stride;                 // [kKeys][stride]
  const int first = args.tile_list[3 * blockIdx.x], count = args.tile_list[3 * blockIdx.x + 1];
  const int64_t image = args.tile_list[3 * blockIdx.x + 2];
  if (image < 0) return;
  const int head = blockIdx.y, warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t head_at = int64_t{head} * width, text_stride = args.heads * width;
  if (has_text(args) && args.k_new) store_new<float>(args, first, count);
  load_rows(queries, static_cast<const float*>(args.q) + first * args.q_stride + head_at, args.q_stride, count, width);

  Row rows[kRows];
  const float* mine = queries + warp * kRows * stride;
  const int own = count - warp * kRows;  // rows of this warp that exist, if any
  const float scale = args.scale * kLog2E;
  const KeyRange range = keys_of_split(args, kKeys);
  const int64_t prefix_at = ((image * args.heads + head) * args.prefix_len + range.begin) * width;
  for (int begin = 0; begin < range.count; begin += kKeys) {
    const int here = range.count - begin < kKeys ? range.count - begin : kKeys;
    const int64_t at = prefix_at + int64_t{begin} * width;
    load_rows(keys, static_cast<const float*>(args.k_prefix) + at, width, here, width);
    load_rows(values, static_cast<const float*>(args.v_prefix) + at, width, here, width);
    __syncthreads();  // the tile is there
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r < own) {
        const float score = lane < here ? dot(mine + r * stride, keys + lane * stride, width) * scale : -INFINITY;
        rows[r].accumulate(rows[r].weigh(score), here, width, [&](int k) { return values + k * stride; });
      }
    __syncthreads();  // before the next tile
  }
  if (range.count == 0) __syncthreads();

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + warp * kRows + r;
    const int length = r < own && has_text(args) ? args.text_len[row] : 0;
    const auto text_at = [&](int token) {
      return int64_t{args.kv_index[row * args.max_text + token]} * text_stride + head_at;
    };
    for (int begin = 0; begin < length; begin += kKeys) {
      const int here = length - begin < kKeys ? length - begin : kKeys;
      float score = -INFINITY;
      if (lane < here)
        score = dot(mine + r * stride, static_cast<const float*>(args.k_text) + text_at(begin + lane), width) * scale;
      rows[r].accumulate(rows[r].weigh(score), here, width,
                         [&](int k) { return static_cast<const float*>(args.v_text) + text_at(begin + k); });
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= own) break;
    const float total = sum_of_warp(rows[r].total);
    const int64_t row = first + warp * kRows + r;
    float* to = static_cast<float*>(args.out) + row * args.out_stride + head_at;
    rows[r].total = total;
    float factor = rows[r].normalise();
    if (gridDim.z > 1) {
      float* state = state_of(args, blockIdx.z, row, head);
      if (lane == 0) store_vec(reinterpret_cast<Vec<float, 2>*>(state), {rows[r].peak, total});
      to = state + kStateHead;
      factor = 1;
    }
#pragma unroll
    for (int i = 0; i < kMaxWidth / kWarpSize; ++i)
      if (lane + i * kWarpSize < width) to[lane + i * kWarpSize] = rows[r].sums[i] * factor;
  }
  if (gridDim.z > 1 && all_splits_stored(args, reinterpret_cast<int*>(shared))) merge_splits<float>(args, first, count);
}

}  // namespace

void prefix_attention_f32(const PrefixAttention& args, CUstream_st* stream) {
  if (args.head_dim % 4 || args.head_dim > kMaxWidth)
    throw Error("q: expected a head_dim that is a multiple of 4 up to 128, got " + std::to_string(args.head_dim));
  const auto threads = static_cast<unsigned>(args.tile_rows / kRows * kWarpSize);
  const size_t shared = (args.tile_rows + 2 * kKeys) * (args.head_dim + kPadding) * sizeof(float);
  launch_kernel({"prefix_attention_f32_kernel", dim3(args.tiles, args.heads, args.splits), dim3(threads), shared,
                 stream, args.overlap},
                prefix_attention_f32_kernel, args);
}

}  // namespace gitfast::cuda
