// Searches whose state is on the device: what csrc/search decides from all logits, decided from the likeliest tokens.
//
// Plain greedy search, samples and beams, without the rules and the constraint of csrc/search/processors.h. Kernels
// read and write the state alone, so that a step can be captured once; the host looks at it when all is over. Sequences
// are not copied as they grow: every step leaves a record per row, and who wants a sequence follows parents back.
//
// Continuous batching: there may be more texts than rows to decode them. An item whose text has ended goes on with the
// next that waits, at once and on its own, so that a long text holds no other.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

constexpr int32_t kMaxBeams = 16;  // their candidates, twice as many, are one for each lane of a warp

// When beams end an item, once as many as they are have finished: where the best running one cannot improve on them,
// judged at its length or at full length, or at once.
enum class Stopping : int32_t { cannot_improve = 0, at_once = 1, cannot_improve_at_full_length = 2 };

// What the host says of a call; on the device, so that it may change between launches of one graph.
struct SearchSettings {
  int32_t limit;         // new tokens, 1 to L minus the longest prompt
  int32_t stopping;      // a Stopping
  int32_t count_prompt;  // 1: length norms count the prompt and not the end of sequence (LengthPenaltyForm::paper)
  int32_t top_k;         // draws are among so many choices, and more of equal score where there are
  float temperature;     // of draws among choices
  float top_p, min_p;    // as in csrc/search/search.h
  int32_t texts;         // N to M: how many are searched for
};
constexpr int64_t kSettings = sizeof(SearchSettings) / 4;

// A beam that has finished: the token of step `steps - 1` behind the record `row` of that step. `steps` is 0 for none
// yet.
struct FinishedBeam {
  float score;  // over its length norm
  float log_prob;
  int32_t token, row, steps;
};
constexpr int64_t kFinishedBeam = sizeof(FinishedBeam) / 4;

enum class Ended : int32_t { no = 0, yes = 1, not_numbers = 2 };

// A text is one search: for the beams of a prompt, or for one of its samples. N items of K rows each, item i's from i K
// on, search for M texts: K beams, else one row. R = N K. Texts of one prompt are neighbours.
//
// Text tokens have M K L slots; the token at place p of row k of text t is written to slot (t K + k) L + p and moves no
// more: beams that fork exchange what stands in `slots`. Done by lanes of a warp in place, as walking the parents would
// be a chain of dependent loads in every layer of the step that follows. All tokens of a prompt but the last are in the
// slots of its first text's first row.
struct SearchState {
  int64_t items = 0;             // N
  int64_t rows_per_item = 1;     // K; beams where above 1
  int64_t texts = 0;             // M: what there is memory for
  int64_t texts_per_prompt = 1;  // samples; 1 of beams
  int64_t max_text = 0;          // L: prompt and new tokens of a row at most
  int64_t max_steps = 0;         // S: what the records have room for
  int32_t eos = 0;

  // Given by the host.
  const int32_t* prompt_len = nullptr;       // (prompts,)
  const int32_t* last_tokens = nullptr;      // (prompts,): of each prompt
  const int32_t* images = nullptr;           // (prompts,): which prefix it sees
  const SearchSettings* settings = nullptr;  // (1,)
  const float* length_norms = nullptr;       // (L + 1,): what the score of a beam of a length is divided by
  const int64_t* keys = nullptr;             // (M,) or null: of random numbers (random.h), for draws

  // What the decoder reads of each row: its next token.
  int32_t* ids = nullptr;        // (R,)
  int32_t* positions = nullptr;  // (R,)
  int32_t* text_len = nullptr;   // (R,): with that token
  int32_t* slots = nullptr;      // (R, L)
  int32_t* image = nullptr;      // (R,): which prefix it sees; -1 when no more texts wait
  int32_t* tiles = nullptr;      // (N, 3) or null: of attention.h, where each item is one; their images are these
  int64_t* row_keys = nullptr;   // (R,) or null: for draws by the head

  float* scores = nullptr;           // (R,): beams' sums of log-probabilities, -inf where there is no such beam
  int32_t* text = nullptr;           // (N,): which is searched for; -1 when no more wait
  int32_t* steps = nullptr;          // (N,): done of it; the counter of draws
  uint32_t* next_text = nullptr;     // (1,): the first that waits
  uint32_t* num_ended = nullptr;     // (1,): texts
  int32_t* ended = nullptr;          // (M,): an Ended
  FinishedBeam* finished = nullptr;  // (M, K), best first; of beams only

  // Records of step s and row k of text t; of no meaning for steps after its end.
  int32_t* tokens = nullptr;   // (S, M K): -1 where logits were no numbers
  float* log_probs = nullptr;  // (S, M K): of the model's own logits
  int32_t* parents = nullptr;  // (S, M K): the record of the step before that this one continues; of beams only
};

// What was chosen for each row from its logits: HeadSelect's results.
struct Choices {
  int64_t count = 0;                       // C: 1 of greedy search, 2 K of beams or all tokens if they are fewer
  const int32_t* tokens = nullptr;         // (R, C)
  const float* log_probs = nullptr;        // (R, C)
  const int32_t* drawn = nullptr;          // (R,) or null: take these
  const float* drawn_log_probs = nullptr;  // (R,)
};

struct SearchCall {
  SearchState state;
  Choices choices;
  int device = 0;
  bool overlap = false;  // as in Linear
};

// The first texts in all items, before their first step: rows hold their prompts and are fed the last token. Keys and
// values of the tokens before it are to be stored by then, those of texts that wait as well.
void start_search(const SearchCall& call, CUstream_st* stream);

// One step of every item. In the first of a text, all of its rows have the choices of its prompt; of beams only the
// first row counts. Beams are those of csrc/search/beam.cpp; of equal scores the lower row wins, then the likelier
// token.
//
// Each enqueues one kernel, a warp per item. Throw Error for sizes they do not take, CudaError when a launch fails.
void advance_search(const SearchCall& call, CUstream_st* stream);

}  // namespace gitfast::cuda
