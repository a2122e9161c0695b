// One step of the decoder for a few rows, by clusters of blocks (cuda/persistent.h).
//
// A step of few rows reads every weight once and depends on itself: each product needs the whole result of the one
// before. So beside the reading, time goes into the moments when all blocks wait for each other. Here a cluster of
// blocks owns a head: its queries, keys, values and attention, and its share of the product that follows, are exchanged
// through the shared memory of the cluster; likewise its share of the MLP's inner columns, through both products. A
// cluster leaves its partial sum of the layer's output, and the next phase begins by adding up the partial sums of all
// clusters in their order: two exchanges between all blocks per layer instead of five.
//
// Weights depend on nothing: each thread always has its next ones on their way, before it waits.
#pragma once

#include <cstdint>

#include "cuda/linear.h"
#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

constexpr int kMaxDecodeRows = 8;
constexpr int kMaxDecodeLayers = 12;  // they are arguments of a kernel
constexpr int kDecodeHeadDim = 64;
constexpr int kMaxCluster = 8;  // blocks: as many as every device with clusters takes

// Shapes: H heads, D = 64 H, F intermediate, B images, P prefix tokens, S entries of the store of text keys and values.
struct DecodeLayer {
  TiledWeight qkv, out, fc1, fc2;  // (3 D, D), (D, D), (F, D), (D, F)
  const void *qkv_bias = nullptr, *out_bias = nullptr, *fc1_bias = nullptr, *fc2_bias = nullptr;
  const void *gamma1 = nullptr, *beta1 = nullptr, *gamma2 = nullptr, *beta2 = nullptr;  // norms behind out and fc2
  const void *k_prefix = nullptr, *v_prefix = nullptr;  // (B, H, P, 64); int8 where there are scales
  // (B, H, P) or null: what the integers of a token are multiplied with; the products are rounded to dtype.
  const float *k_scale = nullptr, *v_scale = nullptr;
  void *k_text = nullptr, *v_text = nullptr;  // (S, H, 64), appended to
};

// Pointers are on one device, of `dtype` (float16, or bfloat16 with weights of any kind) where not said otherwise,
// dense, at multiples of 16 bytes.
struct DecodeStep {
  DType dtype = DType::bf16;
  int device = 0;
  int rows = 0, layers = 0, heads = 0, hidden = 0, intermediate = 0;
  int prefix_len = 0, max_text = 0;
  int64_t num_words = 0, num_positions = 0;
  int cluster = 8;                                    // blocks that share a head, 1 to 8
  const void *words = nullptr, *positions = nullptr;  // (num_words, D), (num_positions, D)
  const void *gamma = nullptr, *beta = nullptr;       // the norm of the embeddings
  float eps = 0;                                      // of all norms
  const int32_t* ids = nullptr;                       // (rows,)
  const int32_t* position_ids = nullptr;              // (rows,)
  const int32_t* image = nullptr;                     // (rows,): which prefix a row sees; -1: none
  // (rows, max_text): the text tokens a row sees, its own last, which is no other row's
  const int32_t* kv_index = nullptr;
  const int32_t* text_len = nullptr;  // (rows,): how many, its own counted
  float* partials = nullptr;          // decode_workspace() floats
  DecodeLayer layer[kMaxDecodeLayers];
};

// Floats of the partial sums.
int64_t decode_workspace(int rows, int heads, int hidden);

// Throws Error for shapes that the kernel does not take.
void check_decode_step(const DecodeStep& args);

}  // namespace gitfast::cuda
