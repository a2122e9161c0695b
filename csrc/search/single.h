// A sequence that keeps one row: greedy, or one sample.
#pragma once

#include <cstdint>
#include <vector>

#include "logits.h"
#include "rules.h"
#include "sampling.h"
#include "search.h"

namespace gitfast::search {

class Single {
 public:
  // `seed` and `sample` decide its draws.
  Single(Tokens prompt, uint64_t seed, int32_t sample)
      : tokens_(std::move(prompt)),
        prompt_length_(tokens_.size()),
        seed_(seed),
        sample_(static_cast<uint64_t>(sample)) {}

  bool done() const { return done_; }
  int32_t token() const { return tokens_.back(); }
  void stop() { done_ = true; }
  // Logits (V) of its row; `scratch` is anyone's.
  void advance(const Rules& rules, Sampler& sampler, const float* logits, const Normalizer& normalizer,
               std::vector<float>& scratch);
  Result result() const;

 private:
  int32_t choose(const Rules& rules, Sampler& sampler, const float* logits, std::vector<float>& scratch) const;

  Tokens tokens_;  // prompt included
  size_t prompt_length_;
  uint64_t seed_, sample_;
  std::vector<float> logprobs_;
  bool stopped_ = false;  // by EOS
  bool done_ = false;
};

}  // namespace gitfast::search
