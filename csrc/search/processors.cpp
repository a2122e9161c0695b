// Rules that change the scores of the next token.
#include "processors.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>

namespace gitfast::search {

Processors::Processors(const SearchOptions& o, int32_t vocab_size) : options_(o), allowed_(o), vocab_size_(vocab_size) {
  active_ = o.repetition_penalty != 1.0 || o.no_repeat_ngram_size > 0 || o.ban_last_token || !o.bad_words.empty() ||
            o.min_new_tokens > 0 || !allowed_.empty() || o.forced_bos || o.forced_eos || !o.suppress_tokens.empty() ||
            !o.begin_suppress_tokens.empty();
}

void Processors::apply(const History& history, float* scores) const {
  const int32_t new_tokens = history.new_tokens();
  if (options_.repetition_penalty != 1.0) penalize_repetition(history.tokens, scores);
  if (options_.no_repeat_ngram_size > 0) ban_ngrams(history.tokens, scores);
  if (options_.ban_last_token && new_tokens > 0) scores[history.tokens.back()] = -INFINITY;
  ban_words(history.tokens, scores);
  if (new_tokens < options_.min_new_tokens)
    for (int32_t token : options_.eos) scores[token] = -INFINITY;
  if (!allowed_.empty()) allow_only(history, scores);
  if (options_.forced_bos && history.tokens.size() == 1) force(*options_.forced_bos, scores);
  if (options_.forced_eos && new_tokens + 1 == options_.max_new_tokens) force(*options_.forced_eos, scores);
  for (int32_t token : options_.suppress_tokens) scores[token] = -INFINITY;
  const int32_t begin = options_.forced_bos && history.prompt_length == 1 ? 1 : 0;  // a forced first token is not it
  if (new_tokens == begin)
    for (int32_t token : options_.begin_suppress_tokens) scores[token] = -INFINITY;
}

void Processors::give_way(const History& history, float* scores) const {
  if (!allowed_.empty()) return allow_only(history, scores);
  for (int32_t token = 0; token < vocab_size_; ++token)
    if (!options_.ends(token)) scores[token] = -INFINITY;
}

// Keskar et al. 2019 (CTRL). Once for each token seen before, the prompt's among them, however often it was seen.
void Processors::penalize_repetition(const Tokens& tokens, float* scores) const {
  const auto penalty = static_cast<float>(options_.repetition_penalty);
  for (auto token = tokens.begin(); token != tokens.end(); ++token) {
    if (std::find(tokens.begin(), token, *token) != token) continue;
    float& score = scores[*token];
    score = score < 0 ? score * penalty : std::min(score / penalty, FLT_MAX);
  }
}

void Processors::ban_ngrams(const Tokens& tokens, float* scores) const {
  const auto n = static_cast<ptrdiff_t>(options_.no_repeat_ngram_size);
  for (auto gram = tokens.begin(); tokens.end() - gram >= n; ++gram)
    if (std::equal(gram, gram + (n - 1), tokens.end() - (n - 1))) scores[gram[n - 1]] = -INFINITY;
}

void Processors::ban_words(const Tokens& tokens, float* scores) const {
  for (const Tokens& word : options_.bad_words) {
    const auto head = static_cast<ptrdiff_t>(word.size()) - 1;
    if (head == 0 && options_.ends(word[0])) continue;  // as in transformers: EOS alone cannot be a bad word
    if (head > static_cast<ptrdiff_t>(tokens.size())) continue;
    if (std::equal(word.begin(), word.end() - 1, tokens.end() - head)) scores[word.back()] = -INFINITY;
  }
}

void Processors::allow_only(const History& history, float* scores) const {
  int32_t node = Trie::kRoot;
  for (size_t i = history.prompt_length; i < history.tokens.size(); ++i) node = allowed_.next(node, history.tokens[i]);
  const Trie::Children& children = allowed_.children(node);
  int32_t banned = 0;  // the first token not yet decided
  for (const auto& [token, child] : children) {
    std::fill(scores + banned, scores + token, -INFINITY);
    banned = token + 1;
  }
  std::fill(scores + banned, scores + vocab_size_, -INFINITY);
}

void Processors::force(int32_t token, float* scores) const {
  std::fill(scores, scores + vocab_size_, -INFINITY);
  scores[token] = 0;
}

}  // namespace gitfast::search
