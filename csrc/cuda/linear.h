// A linear layer of few rows: decoding, where all the time goes into reading the weights once.
#pragma once

#include <cstdint>

#include "cuda/activation.h"
#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

// A weight (N, K) packed for tensor cores: (N / 8, depth / D, 8, D), where D elements are 64 bytes and N is rounded up
// with zeros. A warp loads 512 bytes in a row at once, and everything that a row of 8 columns needs follows.
struct TiledWeight {
  DType dtype = DType::bf16;      // that of the input, or int8, or uint8: the bits of float8_e4m3
  int64_t columns = 0;            // N: of the output
  int64_t depth = 0;              // K: a multiple of D
  const void* data = nullptr;     // aligned to 16 bytes
  const float* scales = nullptr;  // (N,), for weights of 8 bits: what each row of the weight is multiplied by
};

// out[r] = activation(x[r] W^T scales + bias) + residual[r], sums in float32 in an order that depends on W's shape
// alone. Tiles of 16 rows read the weight again: above that a matrix product of many rows is the right tool.
// Pointers are on one device, of `dtype` (float16 or bfloat16) where not said otherwise. Rows are dense, their starts
// strided; rows of x at multiples of 16 bytes.
struct Linear {
  DType dtype = DType::bf16;
  int device = 0;
  int64_t rows = 0;
  TiledWeight weight;
  const void* x = nullptr;                                    // (rows, depth)
  const void* bias = nullptr;                                 // (columns,) or null
  const void* residual = nullptr;                             // (rows, columns) or null
  void* out = nullptr;                                        // (rows, columns); may be residual
  int64_t x_stride = 0, residual_stride = 0, out_stride = 0;  // elements between rows
  Activation activation = Activation::none;
  // Lets the kernel start while the one before it in the stream still runs (programmatic dependent launch): weights are
  // on their way before it waits for it. On devices older than compute capability 9.0 it changes nothing.
  bool overlap = false;
};

// Enqueues the kernel. Throws Error for a depth, dtype or alignment it does not take, CudaError when the launch fails.
void linear(const Linear& args, CUstream_st* stream);

// Each block normalises all rows for itself. On an H100, fc1 of git-base has three blocks on a multiprocessor, which
// spend about 450 cycles on each row together: four rows cost about what a kernel of its own does, a microsecond.
constexpr int64_t kMaxNormLinearRows = 4, kMaxNormLinearWidth = 1024;

// The same of LayerNorm(x), to the bit as add_layer_norm and linear give it one after another. For kMaxNormLinearRows
// rows of kMaxNormLinearWidth elements at most.
struct NormLinear : Linear {
  const void* gamma = nullptr;  // (depth,)
  const void* beta = nullptr;   // (depth,)
  void* normalised = nullptr;   // (rows, depth): LayerNorm(x); not where x is
  int64_t normalised_stride = 0;
  float eps = 1e-5f;
};

// As linear.
void norm_linear(const NormLinear& args, CUstream_st* stream);

}  // namespace gitfast::cuda
