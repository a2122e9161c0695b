// Beam search of one item, as transformers 5 does it (GenerationMixin._beam_search).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "processors.h"
#include "search.h"

namespace gitfast::search {

class BeamItem {
 public:
  BeamItem(const SearchOptions& options, const Processors& processors, std::vector<int32_t> prompt, int32_t vocab_size);

  bool done() const { return done_; }
  int32_t num_rows() const { return static_cast<int32_t>(running_.size()); }
  // Logits of this item's rows, `row_stride` apart; `first_row` names them in errors.
  void advance(const float* logits, int64_t row_stride, int32_t first_row);
  int32_t token(int32_t row) const { return running_[static_cast<size_t>(row)].tokens.back(); }
  int32_t parent(int32_t row) const { return running_[static_cast<size_t>(row)].parent; }
  void stop();
  std::vector<Result> results() const;

 private:
  struct Hypothesis {
    std::vector<int32_t> tokens;  // prompt included
    std::vector<float> logprobs;  // of the new tokens, before any processing
    float score = 0;              // running: sum of processed log-probabilities; finished: over the length penalty
    int32_t parent = 0;           // row of the step before
    bool stopped = false;         // ended by the end-of-sequence token
  };
  struct Candidate {
    float score;
    int32_t row;
    int32_t token;
    float logprob;
  };

  std::vector<Candidate> best_candidates(const float* logits, int64_t row_stride, int32_t first_row);
  Hypothesis extend(const Candidate& candidate) const;
  float normalized(float score, int64_t new_tokens, bool ends_in_eos) const;
  void keep_finished(Hypothesis hypothesis);
  bool can_improve(int64_t new_tokens) const;

  const SearchOptions options_;
  const Processors& processors_;
  const size_t prompt_length_;
  const int32_t vocab_size_;
  std::vector<Hypothesis> running_;
  std::vector<Hypothesis> finished_;  // best first, at most num_beams
  std::vector<float> scores_;
  bool done_ = false;
};

}  // namespace gitfast::search
