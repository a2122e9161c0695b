#include "processors.h"

#include <algorithm>
#include <cmath>

namespace gitfast::search {

Processors::Processors(const SearchOptions& o, int32_t vocab_size)
    : options_(o), allowed_(o.allowed), vocab_size_(vocab_size) {
  active_ = o.repetition_penalty != 1.0f || o.no_repeat_ngram_size > 0 || o.ban_last_token || !o.bad_words.empty() ||
            o.min_new_tokens > 0 || !allowed_.empty() || o.forced_bos || o.forced_eos || !o.suppress_tokens.empty() ||
            !o.begin_suppress_tokens.empty();
}

void Processors::apply(const std::vector<int32_t>& tokens, size_t prompt_length, float* scores) const {
  const auto new_tokens = static_cast<int32_t>(tokens.size() - prompt_length);
  if (options_.repetition_penalty != 1.0f) penalize_repetition(tokens, scores);
  if (options_.no_repeat_ngram_size > 0) ban_ngrams(tokens, scores);
  if (options_.ban_last_token && new_tokens > 0) scores[tokens.back()] = -INFINITY;
  if (!options_.bad_words.empty()) ban_words(tokens, scores);
  if (new_tokens < options_.min_new_tokens) scores[options_.eos] = -INFINITY;
  if (!allowed_.empty()) allow_only(tokens, prompt_length, scores);
  if (options_.forced_bos && tokens.size() == 1) force(*options_.forced_bos, scores);
  if (options_.forced_eos && new_tokens + 1 == options_.max_new_tokens) force(*options_.forced_eos, scores);
  for (int32_t token : options_.suppress_tokens) scores[token] = -INFINITY;
  // A forced first token moves the beginning one step on.
  const int32_t begin = options_.forced_bos && prompt_length == 1 ? 1 : 0;
  if (new_tokens == begin)
    for (int32_t token : options_.begin_suppress_tokens) scores[token] = -INFINITY;
}

// Keskar et al. 2019 (CTRL): scores of tokens seen before, prompt included, are divided or multiplied.
void Processors::penalize_repetition(const std::vector<int32_t>& tokens, float* scores) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (std::find(tokens.begin(), tokens.begin() + static_cast<int64_t>(i), tokens[i]) !=
        tokens.begin() + static_cast<int64_t>(i))
      continue;
    float& score = scores[tokens[i]];
    score = score < 0 ? score * options_.repetition_penalty : score / options_.repetition_penalty;
  }
}

void Processors::ban_ngrams(const std::vector<int32_t>& tokens, float* scores) const {
  const auto n = static_cast<size_t>(options_.no_repeat_ngram_size);
  if (tokens.size() + 1 < n) return;
  const auto tail = tokens.end() - static_cast<int64_t>(n - 1);
  for (size_t start = 0; start + n <= tokens.size(); ++start)
    if (std::equal(tail, tokens.end(), tokens.begin() + static_cast<int64_t>(start)))
      scores[tokens[start + n - 1]] = -INFINITY;
}

void Processors::ban_words(const std::vector<int32_t>& tokens, float* scores) const {
  for (const std::vector<int32_t>& word : options_.bad_words) {
    if (word.size() > tokens.size() + 1 || (word.size() == 1 && word[0] == options_.eos)) continue;
    const auto head = static_cast<int64_t>(word.size()) - 1;
    if (std::equal(word.begin(), word.begin() + head, tokens.end() - head)) scores[word.back()] = -INFINITY;
  }
}

void Processors::allow_only(const std::vector<int32_t>& tokens, size_t prompt_length, float* scores) const {
  int32_t node = Trie::kRoot;
  for (size_t i = prompt_length; i < tokens.size(); ++i) node = allowed_.next(node, tokens[i]);
  std::vector<std::pair<int32_t, float>> kept;
  if (node != Trie::kNone) {
    for (const auto& child : allowed_.children(node)) kept.emplace_back(child.first, scores[child.first]);
    if (allowed_.terminal(node)) kept.emplace_back(options_.eos, scores[options_.eos]);
  }
  std::fill(scores, scores + vocab_size_, -INFINITY);
  for (const auto& [token, score] : kept) scores[token] = score;
}

void Processors::force(int32_t token, float* scores) const {
  std::fill(scores, scores + vocab_size_, -INFINITY);
  scores[token] = 0;
}

}  // namespace gitfast::search
