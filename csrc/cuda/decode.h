// One step of the decoder for a few rows, in two kernels per layer: what latency leaves of decoding.
//
// A step of few rows reads every weight once and depends on itself: each product needs the whole result of the one
// before. So what costs, beside reading, is the number of times all blocks wait for each other. Here a cluster of
// blocks owns a head: its queries, keys and values, its attention, and its share of the product that follows, are
// exchanged through the cluster's shared memory; likewise a share of the MLP's inner columns through both of its
// products. What leaves a cluster is its partial sum of the layer's output, and the next kernel begins by adding up
// those of all clusters in their order. Two exchanges between all blocks per layer, in place of five.
//
// Weights do not depend on anything: each thread has the next ones of its own on their way all the time, before it
// waits.
#pragma once

#include <cstdint>

#include "cuda/linear.h"
#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

constexpr int kDecodeRows = 8;     // at most
constexpr int kDecodeLayers = 12;  // at most: they are arguments of a kernel
constexpr int kDecodeHeadDim = 64;

// Shapes: H heads, D = 64 H, F intermediate, B images, P prefix tokens, S slots of text tokens.
struct DecodeLayer {
  PackedWeight qkv, out, fc1, fc2;  // (3 D, D), (D, D), (F, D), (D, F)
  const void *qkv_bias = nullptr, *out_bias = nullptr, *fc1_bias = nullptr, *fc2_bias = nullptr;
  const void *gamma1 = nullptr, *beta1 = nullptr, *gamma2 = nullptr, *beta2 = nullptr;  // norms behind out and fc2
  const void *k_prefix = nullptr, *v_prefix = nullptr;  // (B, H, P, 64); int8 where there are scales
  // (B, H, P) or null: what the integers of a token are multiplied with; the products are rounded to dtype.
  const float *k_scale = nullptr, *v_scale = nullptr;
  void *k_text = nullptr, *v_text = nullptr;  // (S, H, 64), appended to
};

// Pointers are on one device, of `dtype` (float16, or bfloat16 with weights of any kind) where not said otherwise,
// dense, at multiples of 16 bytes.
struct Decode {
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
  const int32_t* slots = nullptr;
  const int32_t* text_len = nullptr;  // (rows,): how many, its own counted
  float* partials = nullptr;          // decode_workspace() floats
  DecodeLayer layer[kDecodeLayers];
};

int64_t decode_workspace(int rows, int heads, int hidden);

// Whether the device at hand has clusters of this size with enough shared memory. Always, where kernels are emulated.
bool can_decode(int device, int hidden, int intermediate, int heads, int cluster);

// Throws Error for shapes that no kernel here takes.
void check_decode(const Decode& args);

// hidden (rows, D): the last layer's rows for one token each, whose keys and values are stored. A row depends, to the
// bit, on its own data and `cluster` alone. Throws as check_decode does, and CudaError when a launch fails.
void decode_step(const Decode& args, void* hidden, CUstream_st* stream);

}  // namespace gitfast::cuda
