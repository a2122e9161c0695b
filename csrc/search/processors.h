// Rules that change the scores of the next token, in the order and with the meaning of transformers' LogitsProcessors.
#pragma once

#include <cstdint>

#include "search.h"
#include "trie.h"

namespace gitfast::search {

// The tokens of a row before its next one: the prompt and the new tokens.
struct History {
  const Tokens& tokens;
  size_t prompt_length;

  int32_t new_tokens() const { return static_cast<int32_t>(tokens.size() - prompt_length); }
};

// Scores are logits (greedy, samples) or log-probabilities (beams), (V). A banned token's becomes -inf.
class Processors {
 public:
  Processors(const SearchOptions& options, int32_t vocab_size);

  // False when no rule can change any score: callers may then skip the copy.
  bool active() const { return active_; }
  void apply(const History& history, float* scores) const;
  // For untouched scores, where `apply` leaves no token: only the constraint holds, and without one only EOS is left.
  void give_way(const History& history, float* scores) const;

 private:
  void penalize_repetition(const Tokens& tokens, float* scores) const;
  void ban_ngrams(const Tokens& tokens, float* scores) const;
  void ban_words(const Tokens& tokens, float* scores) const;
  void allow_only(const History& history, float* scores) const;
  void force(int32_t token, float* scores) const;

  const SearchOptions& options_;  // of the Rules that hold this
  const Trie allowed_;
  const int32_t vocab_size_;
  bool active_;
};

}  // namespace gitfast::search
