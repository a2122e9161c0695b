// Beam search of one item, as transformers 5 does it (GenerationMixin._beam_search), to the bit where ties decide.
#pragma once

#include <cstdint>
#include <vector>

#include "logits.h"
#include "rules.h"
#include "search.h"
#include "top_k.h"

namespace gitfast::search {

// The divisor of a beam's score. `length` counts new tokens; in the paper's form the prompt too, and not EOS.
float length_norm(const SearchOptions& options, int32_t length);

// Buffers that all items share.
struct BeamScratch {
  std::vector<float> scores;  // (V)
  TopK top_k;
};

class BeamItem {
 public:
  BeamItem(const Rules& rules, Tokens prompt);

  bool done() const { return done_; }
  int32_t num_rows() const { return static_cast<int32_t>(running_.size()); }
  // Logits of this item's rows, `row_stride` apart, and the normalizer of each.
  void advance(const float* logits, int64_t row_stride, const Normalizer* normalizers, BeamScratch& scratch);
  int32_t token(int32_t row) const { return running_[static_cast<size_t>(row)].tokens.back(); }
  int32_t parent(int32_t row) const { return running_[static_cast<size_t>(row)].parent; }
  void stop();
  std::vector<Result> results() const;

 private:
  struct Hypothesis {
    Tokens tokens;                // prompt included
    std::vector<float> logprobs;  // of the new tokens, before any processing
    float score = 0;              // sum of processed log-probabilities; finished: over the length penalty
    int32_t parent = 0;           // row of the step before
    bool finished = false;        // finished_ holds places that nothing has taken yet, too
    bool stopped = false;         // finished by EOS
  };
  struct Candidate {
    float score;
    int32_t row;
    int32_t token;
    float logprob;
    bool exists;  // its row does, and its token is not banned
    bool ends;
  };

  // Sets `candidates_` to the best continuations; false when none exists.
  bool find_candidates(const float* logits, int64_t row_stride, const Normalizer* normalizers, bool rules_hold,
                       BeamScratch& scratch);
  void keep_finished(TopK& top_k);
  void find_running(TopK& top_k);
  void keep_any();
  void extend(const Candidate& candidate, Hypothesis& out) const;
  float normalized(float score, int32_t new_tokens, bool ends_in_eos) const;
  bool finished(size_t count) const;  // at least so many
  bool can_improve() const;

  const SearchOptions& options_;
  const Processors& processors_;
  const int32_t vocab_size_;
  const size_t num_beams_;
  const size_t prompt_length_;
  int32_t new_tokens_ = 0;
  std::vector<Hypothesis> running_;    // best first, at most num_beams
  std::vector<Hypothesis> finished_;   // num_beams places, best first
  std::vector<Hypothesis> next_;       // room for the next of either
  std::vector<Candidate> candidates_;  // (1 + E) num_beams of E tokens that end, best first
  std::vector<float> values_;
  bool done_ = false;
};

}  // namespace gitfast::search
