#include "sampling.h"

#include <algorithm>
#include <cmath>

namespace gitfast::search {
namespace {

// splitmix64 (Steele, Lea and Flood 2014): a bijection whose outputs pass statistical tests on counters.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

double uniform(uint64_t seed, uint64_t sample, uint64_t step) {
  const uint64_t bits = mix(mix(mix(seed) ^ sample) ^ step);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

int32_t Sampler::draw(const float* scores, int32_t vocab_size, double u) {
  candidates_.clear();
  const float top = *std::max_element(scores, scores + vocab_size);
  for (int32_t token = 0; token < vocab_size; ++token)
    if (scores[token] > -INFINITY)
      candidates_.push_back({token, std::exp((static_cast<double>(scores[token]) - top) / options_.temperature)});
  const bool filtered = options_.top_k > 0 || options_.top_p < 1.0f || options_.min_p > 0.0f;
  if (filtered)
    std::stable_sort(candidates_.begin(), candidates_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.weight > b.weight; });

  size_t kept = candidates_.size();
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < kept) {
    const double least = candidates_[static_cast<size_t>(options_.top_k) - 1].weight;  // ties with it stay
    while (kept > 0 && candidates_[kept - 1].weight < least) --kept;
  }
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) sum += candidates_[i].weight;
  if (options_.top_p < 1.0f) {
    // The smallest set whose probability reaches top_p: a token stays while those before it sum to less.
    double before = 0;
    size_t n = 0;
    while (n < kept && (n == 0 || before < static_cast<double>(options_.top_p) * sum))
      before += candidates_[n++].weight;
    kept = n;
    sum = before;
  }
  if (options_.min_p > 0.0f) {
    const double least = static_cast<double>(options_.min_p) * candidates_[0].weight;
    while (kept > 1 && candidates_[kept - 1].weight < least) sum -= candidates_[--kept].weight;
  }

  double left = u * sum;
  for (size_t i = 0; i < kept; ++i) {
    left -= candidates_[i].weight;
    if (left < 0) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

}  // namespace gitfast::search
