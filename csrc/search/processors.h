// Rules that change the scores of the next token, in the order transformers applies them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "search.h"
#include "trie.h"

namespace gitfast::search {

class Processors {
 public:
  Processors(const SearchOptions& options, int32_t vocab_size);

  // False when no rule can change any score: callers may then skip the copy.
  bool active() const { return active_; }

  // Changes `scores` (V) of the token that follows `tokens`, the last tokens.size() - prompt_length of them new.
  // Banned tokens become -inf.
  void apply(const std::vector<int32_t>& tokens, size_t prompt_length, float* scores) const;

 private:
  void penalize_repetition(const std::vector<int32_t>& tokens, float* scores) const;
  void ban_ngrams(const std::vector<int32_t>& tokens, float* scores) const;
  void ban_words(const std::vector<int32_t>& tokens, float* scores) const;
  void allow_only(const std::vector<int32_t>& tokens, size_t prompt_length, float* scores) const;
  void force(int32_t token, float* scores) const;

  const SearchOptions options_;
  const Trie allowed_;
  const int32_t vocab_size_;
  bool active_;
};

}  // namespace gitfast::search
