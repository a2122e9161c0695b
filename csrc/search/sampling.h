// Drawing a token from the scores, reproducibly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "search.h"

namespace gitfast::search {

// A number in [0, 1) that depends on its arguments alone: not on the batch, the threads or the calls before.
double uniform(uint64_t seed, uint64_t sample, uint64_t step);

class Sampler {
 public:
  explicit Sampler(const SearchOptions& options) : options_(options) {}

  // Temperature, then top-k, top-p and min-p in transformers' order, then the token at quantile u of what is left.
  int32_t draw(const float* scores, int32_t vocab_size, double u);

 private:
  struct Candidate {
    int32_t token;
    double weight;  // exp(score / temperature - max)
  };

  const SearchOptions options_;
  std::vector<Candidate> candidates_;
};

}  // namespace gitfast::search
