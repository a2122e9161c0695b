// Keys of samples, and the draw of a token among top-k, top-p and min-p.
#include "sampling.h"

#include <algorithm>
#include <cmath>

#include "logits.h"
#include "random.h"

namespace gitfast::search {

uint64_t sample_key(uint64_t seed, const int32_t* prompt, size_t prompt_length, uint64_t sample) {
  uint64_t bits = mix(seed);
  for (size_t i = 0; i < prompt_length; ++i) bits = mix(bits ^ static_cast<uint64_t>(prompt[i]));
  return mix(bits ^ sample);
}

int32_t Sampler::draw(const float* scores, int32_t vocab_size, double u) {
  const auto n = static_cast<size_t>(vocab_size);
  scores_.resize(n);
  weights_.resize(n);
  const auto temperature = static_cast<float>(options_.temperature);
  const float top = largest(scores, static_cast<int64_t>(n));
  for (size_t i = 0; i < n; ++i) scores_[i] = (scores[i] - top) / temperature;
  exp_sum(scores_.data(), static_cast<int64_t>(n), 0.0f, weights_.data());

  // A token is kept when its score reaches `least` and its weight min_p; the likeliest always is.
  float least = options_.top_k > 0 ? least_of_top_k() : -INFINITY;
  if (options_.top_p < 1.0) least = least_of_top_p(least);
  const auto min_p = static_cast<float>(options_.min_p);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    if (scores_[i] < least || weights_[i] < min_p) weights_[i] = 0;
    sum += static_cast<double>(weights_[i]);
  }
  double left = u * sum;
  size_t chosen = 0;
  for (size_t i = 0; i < n && left >= 0; ++i) {
    if (weights_[i] == 0) continue;
    left -= static_cast<double>(weights_[i]);
    chosen = i;
  }
  return static_cast<int32_t>(chosen);
}

// The k-th largest score: equal ones are kept too.
float Sampler::least_of_top_k() {
  const auto k = std::min(static_cast<size_t>(options_.top_k), scores_.size());
  return top_k_.of(scores_, static_cast<int64_t>(k)).back().value;
}

// The score of the last token needed for the likeliest to reach top_p of what scores `least` or more.
float Sampler::least_of_top_p(float least) {
  double sum = 0;
  size_t count = 0;
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (scores_[i] < least || weights_[i] == 0) continue;
    sum += static_cast<double>(weights_[i]);
    ++count;
  }
  // Even all together, tokens lighter than this are not needed.
  const double light = (1.0 - options_.top_p) * sum / static_cast<double>(count);
  sorted_.clear();
  for (size_t i = 0; i < scores_.size(); ++i)
    if (scores_[i] >= least && static_cast<double>(weights_[i]) >= light)
      sorted_.push_back({scores_[i], static_cast<int64_t>(i)});
  std::sort(sorted_.begin(), sorted_.end(),
            [](const TopK::Entry& a, const TopK::Entry& b) { return a.value > b.value; });
  double reached = 0;
  for (const TopK::Entry& entry : sorted_) {
    least = entry.value;
    reached += static_cast<double>(weights_[static_cast<size_t>(entry.index)]);
    if (reached >= options_.top_p * sum) break;
  }
  return least;
}

}  // namespace gitfast::search
