// A product of matrices, made only to test the emulation of what attention kernels are made of.
#pragma once

#include "tensor.h"

struct CUstream_st;

namespace gitfast::cuda {

// out = a b in float32. a (M, K), b (K, N) of float16 or bfloat16; K and N are multiples of 8; all dense.
struct TileProduct {
  DType dtype = DType::f16;
  int64_t M = 0, N = 0, K = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  float* out = nullptr;
};

void tile_product(const TileProduct& args, CUstream_st* stream);

}  // namespace gitfast::cuda
