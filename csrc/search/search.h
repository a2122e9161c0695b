// Search: logits in, tokens out. A state machine that knows nothing of models or devices.
//
// An item is one prompt on one image. An item occupies one or more rows of the next decode step: one for greedy, K for
// beams, num_return_sequences for samples; none once it is finished. Every engine runs the same loop:
//
//   Search search(options, prompts, vocab_size);
//   rows = one per item, fed with its whole prompt        // search.next() is in this initial state
//   while (!search.done()) {
//     logits = decode(rows)                               // (search.num_rows(), V) float32, last position of each row
//     search.advance(logits)
//     // row r of the next step continues row parents()[r] of this one and is fed tokens()[r]
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace gitfast::search {

enum class EarlyStopping : uint8_t { no, yes, never };
enum class LengthPenaltyForm : uint8_t { transformers, paper };

// Same names and meanings as GenerationOptions in gitfast/engines/base.py.
struct SearchOptions {
  int32_t max_new_tokens = 50;
  int32_t min_new_tokens = 0;
  int32_t num_beams = 1;
  int32_t num_return_sequences = 1;
  float length_penalty = 1.0f;
  LengthPenaltyForm length_penalty_form = LengthPenaltyForm::transformers;
  EarlyStopping early_stopping = EarlyStopping::no;
  bool do_sample = false;
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  uint64_t seed = 0;
  float repetition_penalty = 1.0f;
  int32_t no_repeat_ngram_size = 0;
  bool ban_last_token = false;
  std::vector<std::vector<int32_t>> bad_words;
  std::vector<int32_t> suppress_tokens;
  std::vector<int32_t> begin_suppress_tokens;
  std::optional<int32_t> forced_bos;
  std::optional<int32_t> forced_eos;
  std::vector<std::vector<int32_t>> allowed;  // continuations allowed after the prompt; empty: any
  int32_t eos = 102;
};

enum class FinishReason : uint8_t { stop, length };

struct Result {
  std::vector<int32_t> tokens;  // new tokens, EOS included when it was produced
  std::vector<float> logprobs;  // log-softmax of the raw logits at each token
  double score = 0;             // sum of log-probabilities; beams: over the length penalty
  FinishReason reason = FinishReason::length;
};

class Search {
 public:
  // Throws Error naming the option that cannot be. `prompts[i]` are the ids item i starts from (never empty).
  Search(const SearchOptions& options, std::vector<std::vector<int32_t>> prompts, int32_t vocab_size);
  ~Search();
  Search(Search&&) noexcept;
  Search& operator=(Search&&) noexcept;

  bool done() const;
  int32_t vocab_size() const;
  int32_t num_rows() const;                               // rows of the step whose logits `advance` expects
  void advance(const float* logits, int64_t row_stride);  // (num_rows(), V)
  const std::vector<int32_t>& tokens() const;             // per next row: the token it is fed
  const std::vector<int32_t>& parents() const;            // per next row: the row of the last step that it continues
  const std::vector<int32_t>& items() const;              // per next row: the item it belongs to

  void stop();                                       // ends every item as it stands (FinishReason::length)
  std::vector<std::vector<Result>> results() const;  // per item, best first

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gitfast::search
