#include "single.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "random.h"

namespace gitfast::search {

void Single::advance(const SearchOptions& options, const Processors& processors, Sampler& sampler, const float* logits,
                     const Normalizer& normalizer, std::vector<float>& scratch) {
  const int32_t token = choose(options, processors, sampler, logits, scratch);
  tokens_.push_back(token);
  logprobs_.push_back(normalizer.log_probability(logits[token]));
  stopped_ = token == options.eos;
  done_ = stopped_ || static_cast<int32_t>(logprobs_.size()) >= options.max_new_tokens;
}

int32_t Single::choose(const SearchOptions& options, const Processors& processors, Sampler& sampler,
                       const float* logits, std::vector<float>& scratch) const {
  const auto vocab_size = static_cast<int64_t>(scratch.size());
  const float* scores = logits;
  if (processors.active()) {
    const History history{tokens_, prompt_length_};
    std::copy_n(logits, vocab_size, scratch.begin());
    processors.apply(history, scratch.data());
    if (largest(scratch.data(), vocab_size) == -INFINITY) {
      std::copy_n(logits, vocab_size, scratch.begin());
      processors.give_way(history, scratch.data());
      if (largest(scratch.data(), vocab_size) == -INFINITY) return options.eos;  // and its logit is -inf
    }
    scores = scratch.data();
  }
  if (!options.do_sample) return argmax(scores, vocab_size);
  const uint64_t key = sample_key(options.seed, tokens_.data(), prompt_length_, sample_);
  return sampler.draw(scores, uniform(key, logprobs_.size()));
}

Result Single::result() const {
  Result r;
  r.tokens.assign(tokens_.begin() + static_cast<std::ptrdiff_t>(prompt_length_), tokens_.end());
  r.logprobs = logprobs_;
  r.score = std::accumulate(logprobs_.begin(), logprobs_.end(), 0.0);
  r.reason = stopped_ ? FinishReason::stop : FinishReason::length;
  return r;
}

}  // namespace gitfast::search
