// Text embeddings: word + position, then LayerNorm.
#pragma once

#include <cstdint>

#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

// out[r] = LayerNorm(words[ids[r]] + positions[position_ids[r]]), computed in float32 as add_layer_norm does.
// An id outside its table, negative ones among them, reads nothing and makes its row of `out` NaN: ids are made on the
// device, where nobody could be token_stream of an error.
// Pointers are on one device, of `dtype` (float32, float16, bfloat16) where not said otherwise. Rows are dense, their
// starts strided.
struct EmbedLayerNorm {
  DType dtype = DType::f32;
  int device = 0;
  int64_t rows = 0, width = 0;
  int64_t num_words = 0, num_positions = 0;
  const int32_t* ids = nullptr;                                    // (rows,)
  const int32_t* position_ids = nullptr;                           // (rows,)
  const void* words = nullptr;                                     // (num_words, width)
  const void* positions = nullptr;                                 // (num_positions, width)
  const void* gamma = nullptr;                                     // (width,)
  const void* beta = nullptr;                                      // (width,)
  void* out = nullptr;                                             // (rows, width)
  int64_t words_stride = 0, positions_stride = 0, out_stride = 0;  // elements between rows
  float eps = 1e-12f;
  bool overlap = false;  // as in Linear
};

// Enqueues the kernel. Throws Error for a width it does not take or an empty table, CudaError when the launch fails.
void embed_layer_norm(const EmbedLayerNorm& args, CUstream_st* stream);

}  // namespace gitfast::cuda
