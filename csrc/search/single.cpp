// Greedy search or one sample of one item.
#include "single.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "random.h"

namespace gitfast::search {

void Single::advance(const Rules& rules, Sampler& sampler, const float* logits, const Normalizer& normalizer,
                     std::vector<float>& scratch) {
  const int32_t token = choose(rules, sampler, logits, scratch);
  tokens_.push_back(token);
  logprobs_.push_back(normalizer.log_probability(logits[token]));
  stopped_ = rules.options.ends(token);
  done_ = stopped_ || static_cast<int32_t>(logprobs_.size()) >= rules.options.max_new_tokens;
}

int32_t Single::choose(const Rules& rules, Sampler& sampler, const float* logits, std::vector<float>& scratch) const {
  const int32_t vocab_size = rules.vocab_size;
  const float* scores = logits;
  if (rules.processors.active()) {
    const History history{tokens_, prompt_length_};
    scratch.assign(logits, logits + vocab_size);
    rules.processors.apply(history, scratch.data());
    if (largest(scratch.data(), vocab_size) == -INFINITY) {
      scratch.assign(logits, logits + vocab_size);
      rules.processors.give_way(history, scratch.data());
      if (largest(scratch.data(), vocab_size) == -INFINITY) return rules.options.eos.front();  // and its logit is -inf
    }
    scores = scratch.data();
  }
  if (!rules.options.do_sample) return argmax(scores, vocab_size);
  const uint64_t key = sample_key(seed_, tokens_.data(), prompt_length_, sample_);
  return sampler.draw(scores, vocab_size, uniform(key, logprobs_.size()));
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
