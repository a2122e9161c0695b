// Drawing a token from the scores, reproducibly.
#pragma once

#include <cstdint>
#include <vector>

#include "search.h"
#include "top_k.h"

namespace gitfast::search {

// The key of a sample's random numbers, which are `uniform` (random.h) of it and the step: they depend on these
// arguments alone, not on the batch, the threads or the calls before.
uint64_t sample_key(uint64_t seed, const int32_t* prompt, size_t prompt_length, uint64_t sample);

// Temperature, top-k, top-p and min-p, in transformers' order and with its rules.
class Sampler {
 public:
  // `options` must outlive this.
  explicit Sampler(const SearchOptions& options) : options_(options) {}

  // The token at quantile u of those kept, in order of token id. Scores (V) are logits, at least one of them finite.
  int32_t draw(const float* scores, int32_t vocab_size, double u);

 private:
  float least_of_top_k();
  float least_of_top_p(float least);

  const SearchOptions& options_;
  std::vector<float> scores_;   // less the largest, over the temperature
  std::vector<float> weights_;  // exp(score)
  std::vector<TopK::Entry> sorted_;
  TopK top_k_;
};

}  // namespace gitfast::search
