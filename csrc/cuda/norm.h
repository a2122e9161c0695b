// Residual + bias + LayerNorm in one pass over memory: what ends each half of a GIT decoder layer.
#pragma once

#include <cstdint>

#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

constexpr int64_t kMaxNormWidth = 4096;

// out[r] = (s - mean(s)) / sqrt(var(s) + eps) * gamma + beta with s = x[r] + bias + residual[r], computed in float32.
// Pointers are on one device, of `dtype` (float32, float16, bfloat16). Rows are dense, their starts strided.
struct AddLayerNorm {
  DType dtype = DType::f32;
  int device = 0;
  int64_t rows = 0, width = 0;
  const void* x = nullptr;                                    // (rows, width)
  const void* bias = nullptr;                                 // (width,) or null
  const void* residual = nullptr;                             // (rows, width) or null
  const void* gamma = nullptr;                                // (width,)
  const void* beta = nullptr;                                 // (width,)
  void* out = nullptr;                                        // (rows, width); may be x or residual
  int64_t x_stride = 0, residual_stride = 0, out_stride = 0;  // elements between rows
  float eps = 1e-5f;
  // Tables instead of rows: row r is x[x_index[r]], of x_rows, and likewise for residual. Null: x[r]. An index outside
  // its table reads nothing and makes the row NaN.
  const int32_t* x_index = nullptr;         // (rows,)
  const int32_t* residual_index = nullptr;  // (rows,)
  int64_t x_rows = 0, residual_rows = 0;
  bool overlap = false;  // as in Linear
};

// Enqueues the kernel. Throws Error for a width it does not take, CudaError when the launch fails.
void add_layer_norm(const AddLayerNorm& args, CUstream_st* stream);

}  // namespace gitfast::cuda
