// Whole sequences in one kernel: every step of decoding, the choice of tokens and the end of the search, without the
// host.
//
// The phases of cuda/decode.h follow one another in one cooperative grid. Between them all blocks wait for each other,
// instead of one kernel waiting for another, and the stream of weights never stops, not at the end of a token either.
#pragma once

#include "cuda/decode.h"
#include "cuda/search.h"
#include "cuda/select.h"

namespace gitfast::cuda {

struct PersistentDecode {
  DecodeStep decode;  // ids, position_ids, kv_index, text_len and image are those of `search`
  SearchState search;
  int64_t choices = 1;              // per row: as in search.h
  int32_t* tokens = nullptr;        // (R, choices), as in HeadSelect
  float* log_probs = nullptr;       // (R, choices)
  TiledWeight head;                 // (V, D)
  const void* head_bias = nullptr;  // (V,)
  void* workspace = nullptr;        // persistent_workspace() bytes, aligned to 16
  uint32_t* barrier = nullptr;      // (2,): zeros; the second is 1 afterwards where blocks waited in vain
  // (1 + S R,) or null, memory that the host can read while the kernel runs: the number of steps done, and their
  // tokens; for searches without beams.
  int32_t* token_stream = nullptr;
  int32_t* placement = nullptr;  // (blocks,) or null: the multiprocessor that ran each block
};

// Bytes of the workspace.
int64_t persistent_workspace(const PersistentDecode& args);

// True where the head is small enough and the device runs all blocks at once, which it always does under emulation.
// Looks at the shapes of weights alone.
bool fits_persistent_decode(const PersistentDecode& args);

// Runs a search that start_search() began until all its sequences have ended. A row depends, to the bit, on its own
// data and `cluster` alone. Throws Error for arguments it does not take, CudaError when the launch fails.
void persistent_decode(const PersistentDecode& args, CUstream_st* stream);

}  // namespace gitfast::cuda
