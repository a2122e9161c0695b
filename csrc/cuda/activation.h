// Bias + activation, element by element: what stands between the two matrices of a layer's MLP.
#pragma once

#include <cstdint>

#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

// gelu(x) = x/2 (1 + erf(x / sqrt 2)), of the decoder; quick_gelu(x) = x sigmoid(1.702 x), of the vision encoder.
enum class Activation : uint8_t { none, gelu, quick_gelu };

// out[r] = activation(x[r] + bias), computed in float32.
// Pointers are on one device, of `dtype` (float32, float16, bfloat16). Rows are dense, their starts strided.
struct BiasActivation {
  DType dtype = DType::f32;
  int device = 0;
  Activation activation = Activation::none;
  int64_t rows = 0, width = 0;
  const void* x = nullptr;               // (rows, width)
  const void* bias = nullptr;            // (width,) or null
  void* out = nullptr;                   // (rows, width); may be x
  int64_t x_stride = 0, out_stride = 0;  // elements between rows
};

// Enqueues the kernel. Throws Error for a width it does not take, CudaError when the launch fails.
void bias_activation(const BiasActivation& args, CUstream_st* stream);

}  // namespace gitfast::cuda
