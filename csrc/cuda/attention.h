// Attention of rows that share the prefix of their image and see some text of their own, one softmax over both.
//
// One kernel serves the rows of an image (each of them sees all of them, no text), prompts (causal, through the text
// that each row lists) and decoding (one row per beam, sample or image). Online softmax in base 2 as in
// FlashAttention-2 (Dao, 2023); products with the prefix on tensor cores, with the few text tokens on the ordinary
// ones; sums in float32. A second kernel serves float32, exact and slower: all its products are fused multiply-adds.
//
// A block has four warps. With tiles of 16 rows, those of decoding, the warps share the rows and have keys of their
// own; with tiles of 64 each has 16 rows. Rows of text go round the warps, while the first keys are on their way.
//
// One image and one row give one block per head, which leaves most of a GPU idle. So the prefix may be split over
// several blocks (as in Flash-Decoding): each leaves its peak, total and sums in float32 in a workspace, and the block
// that ends last merges them, in the order of the splits. A second kernel would need no counters, but one launch more
// in every layer and step.
#pragma once

#include <cstdint>

#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

// Everything is dense but for rows whose stride is given. R rows, T tiles, B images, H heads, P prefix tokens, S
// entries of the text store.
struct PrefixAttention {
  DType dtype = DType::bf16;  // float32, float16 or bfloat16
  int device = 0;
  int64_t rows = 0, tiles = 0, images = 0, heads = 0, head_dim = 0, prefix_len = 0, max_text = 0, kv_capacity = 0;
  int64_t tile_rows = 16;   // the most rows of one tile: 16, for decoding, or 64
  const void* q = nullptr;  // (R, H, head_dim)
  // (T, 3): a tile's first row, its number of rows, and its image. A row is in one tile at most; those of tiles with a
  // negative image are left out: nothing of them is stored.
  const int32_t* tile_list = nullptr;
  const void* k_prefix = nullptr;  // (B, H, P, head_dim); int8 where there are scales
  const void* v_prefix = nullptr;
  // (B, H, P) or null: what the integers of a token are multiplied with; the products are rounded to dtype. For float16
  // and bfloat16, and a head_dim of 64, that of every GIT model.
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;
  void* k_text = nullptr;  // (S, H, head_dim): an append-only store
  void* v_text = nullptr;
  const int32_t* kv_index = nullptr;  // (R, max_text): the entries of a row's text tokens in the store, in order
  const int32_t* text_len = nullptr;  // (R)
  // (R, H, head_dim) or null: keys and values of the rows' last text tokens, stored in their entries of the store
  // first. No entry may be the last of two rows.
  const void* k_new = nullptr;
  const void* v_new = nullptr;
  void* out = nullptr;                                   // (R, H, head_dim); zeros for a row that sees no key
  int64_t q_stride = 0, new_stride = 0, out_stride = 0;  // elements between rows
  float scale = 0;
  // 1 to kMaxSplits parts of the prefix, in tiles of keys; the last has the text too. Parts may be empty.
  int64_t splits = 1;
  // Not for one split: workspace_bytes() of it, zeros before its first use. Launches of any shapes may use it one after
  // another.
  void* workspace = nullptr;
  bool overlap = false;  // as in Linear
};

constexpr int64_t kMaxSplits = 32;
constexpr int64_t kMaxSplitTiles = 16384;               // tiles x heads that a split prefix may have
constexpr int64_t kHeadDims[] = {16, 32, 64, 80, 128};  // of float16 and bfloat16
constexpr int64_t kInt8HeadDim = 64;                    // of an int8 prefix: that of every GIT model

// Bytes of the workspace that `args` needs: 0 for one split. Throws Error for splits it does not take, or for too many
// tiles x heads.
size_t workspace_bytes(const PrefixAttention& args);

// Enqueues the kernel. A row's result depends, to the bit, on its own data, `splits` and `tile_rows` only: not on the
// other rows or its tile. Throws Error for a head_dim, tile_rows, splits or alignment it does not take, CudaError when
// the launch fails.
void prefix_attention(const PrefixAttention& args, CUstream_st* stream);

}  // namespace gitfast::cuda
