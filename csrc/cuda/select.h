// The output head and the choice of tokens from it, without logits in memory.
#pragma once

#include <cstdint>

#include "cuda/linear.h"
#include "tensor.h"

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

constexpr int64_t kMaxChoices = 64;  // per row

// logits = (x W^T scales + bias) / temperature, in float32. Gives the `choices` largest of each row in descending
// order, of equal ones the lower token first, and their log-softmax over all tokens. A row whose logits hold NaN or
// infinity, or nothing above -inf, gets tokens of -1 and NaN: logits are made on the device, where nobody could be
// token_stream of an error. Pointers are on one device, of `dtype` (float16 or bfloat16) where not said otherwise.
struct HeadSelect {
  DType dtype = DType::bf16;
  int device = 0;
  int64_t rows = 0;
  int64_t choices = 1;               // up to kMaxChoices, and the number of tokens
  TiledWeight weight;                // a column per token
  const void* x = nullptr;           // (rows, depth)
  int64_t x_stride = 0;              // elements between rows
  const void* bias = nullptr;        // (columns,) or null
  float temperature = 1;             // positive
  int32_t* tokens = nullptr;         // (rows, choices)
  float* log_probs = nullptr;        // (rows, choices)
  float* logits = nullptr;           // (rows, columns) or null, where they are asked for too
  const int64_t* keys = nullptr;     // (rows,) or null: of the random numbers (random.h)
  const int32_t* step = nullptr;     // (R,): its counter
  int32_t* drawn = nullptr;          // (rows,): a token by chance, the one at a random quantile in order of token
  float* drawn_log_probs = nullptr;  // (rows,) or null: of those, at a temperature of 1
  void* workspace = nullptr;         // select_workspace() bytes, aligned to 16; need not be cleared
  bool overlap = false;              // as in Linear
};

int64_t select_workspace(int64_t rows, int64_t columns, int64_t choices);

// Enqueues two kernels, three with keys. Throws Error for arguments it does not take, CudaError when a launch
// fails.
void head_select(const HeadSelect& args, CUstream_st* stream);

}  // namespace gitfast::cuda
