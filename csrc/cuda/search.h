// Searches with their state on the device: what csrc/search decides from all logits, decided from the likeliest tokens.
//
// Greedy search, samples and beams, without the rules and the constraint of csrc/search/processors.h. Kernels read and
// write nothing but the state, so a step can be captured once; the host looks at it when all sequences have ended.
// Tokens are not copied as sequences grow: every step leaves a record per row, and a beam is read by following parents.
//
// Continuous batching: there may be more sequences than rows to decode them. When the sequence of a slot ends, the slot
// takes the next one that waits, at once and on its own, so a long sequence holds up no other. The host may let more
// sequences wait between steps; slots that have nothing to do take them by start_search().
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

constexpr int32_t kMaxBeams = 16;  // their candidates, twice as many, are one for each lane of a warp

// When beams end a slot, once as many as they are have finished: where the best running one cannot improve on them,
// judged at its length or at full length, or at once.
enum class Stopping : int32_t { cannot_improve = 0, at_once = 1, cannot_improve_at_full_length = 2 };

// The options of a prompt's searches; on the device, so that they may change between launches of one graph.
struct SearchSettings {
  int32_t limit;         // new tokens, 1 to L minus the longest prompt
  int32_t stopping;      // a Stopping
  int32_t count_prompt;  // 1: length norms count the prompt and not the end of sequence (LengthPenaltyForm::paper)
  int32_t top_k;         // draws are among so many choices, and more of equal score where there are
  float temperature;     // of draws among choices
  float top_p, min_p;    // as in csrc/search/search.h
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

// A sequence is the result of one sample or of one beam search over a prompt. There is memory for M sequences, which
// are searched for in N slots of K rows each, K beams or one row: slot i has rows i K, i K + 1, ... and R = N K.
// Sequences of one prompt are neighbours. Those that have ended and were read make room for others.
//
// The store of text keys and values has M K L entries; token `position` of row k of sequence t is written to entry
// (t K + k) L + position and moves no more: beams that fork exchange their `kv_index`, lanes of a warp in place, since
// following the parents would be a chain of dependent loads in every layer of the next step. All tokens of a prompt but
// the last are in the entries of the first row of its first sequence.
struct SearchState {
  int64_t slots = 0;                 // N
  int64_t rows_per_slot = 1;         // K; beams where above 1
  int64_t sequences = 0;             // M: what there is memory for
  int64_t sequences_per_prompt = 1;  // samples; 1 of beams
  int64_t max_text = 0;              // L: prompt and new tokens of a row at most
  int64_t max_steps = 0;             // S: what the records have room for
  int32_t eos = 0;

  // Given by the host.
  const int32_t* prompt_len = nullptr;       // (prompts,)
  const int32_t* last_tokens = nullptr;      // (prompts,): of each prompt
  const int32_t* images = nullptr;           // (prompts,): which prefix it sees
  const SearchSettings* settings = nullptr;  // (prompts,)
  const float* length_norms = nullptr;       // (prompts, L + 1), of beams only: what scores of a length are divided by
  const int64_t* keys = nullptr;             // (M,) or null: of random numbers (random.h), for draws
  const int32_t* queue = nullptr;            // (M,): the n-th sequence that waits is number n % M
  const uint32_t* queued = nullptr;          // (1,): how many have waited so far

  // Read by the decoder: each row's next token.
  int32_t* ids = nullptr;        // (R,)
  int32_t* positions = nullptr;  // (R,)
  int32_t* text_len = nullptr;   // (R,): with that token
  int32_t* kv_index = nullptr;   // (R, L)
  int32_t* image = nullptr;      // (R,): which prefix it sees; -1 when no more sequences wait
  int32_t* tiles = nullptr;      // (N, 3) or null: of attention.h, where each slot is one; their images are these
  int64_t* row_keys = nullptr;   // (R,) or null: for draws by the head

  float* scores = nullptr;            // (R,): beams' sums of log-probabilities, -inf where there is no such beam
  int32_t* sequence = nullptr;        // (N,): which is searched for; -1 when none waited
  int32_t* steps = nullptr;           // (N,): done of it; the counter of draws
  uint32_t* next_sequence = nullptr;  // (1,): how many of those queued have begun
  uint32_t* num_ended = nullptr;      // (1,): and have ended
  int32_t* ended = nullptr;           // (M,): an Ended; memory that the host reads meanwhile, `no` before they begin
  FinishedBeam* finished = nullptr;   // (M, K), best first; of beams only

  // Records of step s and row k of sequence t; of no meaning for steps after its end.
  int32_t* tokens = nullptr;   // (S, M K): -1 where logits were no numbers
  float* log_probs = nullptr;  // (S, M K): of the model's own logits
  int32_t* parents = nullptr;  // (S, M K): the record of the step before that this one continues; of beams only
};

// The choices for each row from its logits: the results of HeadSelect.
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

// Slots that have no sequence take those that wait, before their first step: rows hold their prompts and are fed the
// last token. Keys and values of the tokens before it are to be stored by then, those of sequences that go on waiting
// as well. At first no slot has a sequence, and nothing is counted.
void start_search(const SearchCall& call, CUstream_st* stream);

// One step of every slot. In the first of a sequence, all of its rows have the choices of its prompt; of beams only the
// first row counts. Beams are those of csrc/search/beam.cpp; of equal scores the lower row wins, then the likelier
// token.
//
// Each enqueues one kernel, a warp per slot. Throw Error for sizes they do not take, CudaError when a launch fails.
void advance_search(const SearchCall& call, CUstream_st* stream);

}  // namespace gitfast::cuda
