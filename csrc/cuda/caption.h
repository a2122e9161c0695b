// Whole texts in one kernel: every step of decoding, the choice of tokens and the end of the search, without the host.
//
// The phases of cuda/decode.h follow one another in one cooperative grid: between them all blocks wait for each other,
// in place of one kernel waiting for another, and the stream of weights never stops, not at the end of a token either.
#pragma once

#include "cuda/decode.h"
#include "cuda/search.h"
#include "cuda/select.h"

namespace gitfast::cuda {

struct Caption {
  Decode decode;  // ids, position_ids, slots, text_len and image are those of `search`
  SearchState search;
  int64_t choices = 1;              // of a row: as in search.h
  int32_t* tokens = nullptr;        // (R, choices), as HeadSelect's
  float* log_probs = nullptr;       // (R, choices)
  PackedWeight head;                // (V, D)
  const void* head_bias = nullptr;  // (V,)
  void* workspace = nullptr;        // caption_workspace() bytes, aligned to 16
  uint32_t* barrier = nullptr;      // (2,): zeros; the second is 1 afterwards where blocks waited in vain
  int32_t* told = nullptr;          // (1 + S R,) or null, memory that the host can read while the kernel runs: how
                                    // many steps are done, and their tokens; for searches without beams
};

int64_t caption_workspace(const Caption& args);

// Whether the head is not too large, and the device runs all blocks at once, which it always does where kernels are
// emulated. Looks at the shapes of weights alone.
bool can_caption(const Caption& args);

// Runs a search that start_search() began until all its texts have ended. Throws Error for what it does not take,
// CudaError when the launch fails.
void caption(const Caption& args, CUstream_st* stream);

}  // namespace gitfast::cuda
