// Search: logits in, tokens out. A state machine that knows nothing of models or devices.
//
// An item is one prompt on one image. An item occupies one or more rows of the next decode step: one for greedy, K for
// beams, num_return_sequences for samples; none once it is finished. Every engine runs the same loop:
//
//   Search search(options, prompts, vocab_size);
//   rows = one per item, fed with its whole prompt        // search.items() is in this initial state
//   while (!search.done()) {
//     logits = decode(rows)                               // (search.num_rows(), V) float32, last position of each row
//     search.advance(logits)
//     // row r of the next step continues row parents()[r] of this one and is fed tokens()[r]
//   }
//
// An item's results depend on its own prompt, its logits and the options alone: not on the other items, nor on where
// in the batch it stands. Results are those of transformers 5 where it defines them; beyond that:
//  - Sequences hold no padding.
//  - Beams that cannot exist are dropped: where rules or a small vocabulary leave fewer than num_beams continuations,
//    transformers goes on with copies of score -1e9. An item may so return fewer than num_return_sequences.
//  - Where the rules leave no token at all, they give way: the constraint `allowed` alone holds, and without one the
//    sequence ends with EOS.
//  - Samples are drawn by counter from (seed, prompt, sample, step), by inversion in order of token id. Without a seed
//    every item takes one of its own, so that equal prompts differ.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace gitfast::search {

using Tokens = std::vector<int32_t>;

enum class EarlyStopping : uint8_t { no, yes, never };

// The divisor of a finished beam's sum of log-probabilities.
//   transformers: length ** length_penalty, length counting new tokens, EOS among them.
//   paper: ((5 + length) / 6) ** length_penalty (Wu et al. 2016), length counting prompt and new tokens, without EOS.
enum class LengthPenaltyForm : uint8_t { transformers, paper };

// Same names and meanings as GenerationOptions in gitfast/types.py.
struct SearchOptions {
  int32_t max_new_tokens = 50;
  int32_t min_new_tokens = 0;
  int32_t num_beams = 1;
  int32_t num_return_sequences = 1;
  double length_penalty = 1.0;
  LengthPenaltyForm length_penalty_form = LengthPenaltyForm::transformers;
  EarlyStopping early_stopping = EarlyStopping::no;
  bool do_sample = false;
  double temperature = 1.0;
  int32_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  std::optional<uint64_t> seed;  // none: at random, for each item
  double repetition_penalty = 1.0;
  int32_t no_repeat_ngram_size = 0;
  bool ban_last_token = false;
  std::vector<Tokens> bad_words;
  Tokens suppress_tokens;
  Tokens begin_suppress_tokens;
  std::optional<int32_t> forced_bos;
  std::optional<int32_t> forced_eos;
  std::vector<Tokens> allowed;  // continuations allowed after the prompt, with or without EOS; none given: any
  Tokens eos = {102};           // tokens that end a sequence, the first of them where one has to be chosen

  bool ends(int32_t token) const { return std::find(eos.begin(), eos.end(), token) != eos.end(); }
};

enum class FinishReason : uint8_t { stop, length };

struct Result {
  Tokens tokens;                // new tokens, EOS included when it was produced
  std::vector<float> logprobs;  // log-softmax of the raw logits at each token
  double score = 0;             // sum of log-probabilities; beams: of the processed ones, over the length penalty
  FinishReason reason = FinishReason::length;
};

// Options that were checked, and what is made of them once: shared by all searches that follow them.
struct Rules;
using RulesPtr = std::shared_ptr<const Rules>;

// Throws Error naming the option that cannot be.
RulesPtr make_rules(const SearchOptions& options, int32_t vocab_size);
const SearchOptions& options_of(const Rules& rules);

// The seed of one item: that of the options, or one at random.
uint64_t seed_of_item(const SearchOptions& options);

struct Normalizer;  // logits.h

class Search {
 public:
  // `prompts[i]` are the ids item i starts from: never empty, or Error names them.
  Search(RulesPtr rules, std::vector<Tokens> prompts);
  ~Search();
  Search(Search&&) noexcept;
  Search& operator=(Search&&) noexcept;

  bool done() const;
  int32_t vocab_size() const;
  int32_t num_items() const;  // prompts
  int32_t num_rows() const;   // rows of the step whose logits `advance` expects
  // Logits (num_rows(), V), rows `row_stride` floats apart. Values of -inf are probabilities of zero; NaN, +inf, or
  // nothing but -inf throws Error naming the row, and leaves the search as it was.
  void advance(const float* logits, int64_t row_stride);
  // The same, given each row's normalizer: threads can share computing those, which takes most of the time.
  void advance(const float* logits, int64_t row_stride, const Normalizer* normalizers);
  const Tokens& tokens() const;                 // per next row: the token it is fed
  const std::vector<int32_t>& parents() const;  // per next row: the row of the last step that it continues
  const std::vector<int32_t>& items() const;    // per next row: the item it belongs to

  void stop();                                       // ends every item as it stands (FinishReason::length)
  void stop(int32_t item);                           // ends that one
  std::vector<std::vector<Result>> results() const;  // per item, best first (samples: in order of drawing)

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gitfast::search
