// Checks of search options.
#include "options.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <sstream>
#include <string>

#include "tensor.h"

namespace gitfast::search {
namespace {

constexpr size_t kMaxEos = 64;
constexpr int32_t kMaxRowsPerItem = 4096;  // more is a mistake, and must not overflow the arithmetic of rows

template <class T>
void require(bool ok, const char* option, const std::string& expected, T got) {
  if (ok) return;
  std::ostringstream message;
  message << option << ": expected " << expected << ", got " << got;
  throw Error(message.str());
}

std::string at(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void check_tokens(const Tokens& tokens, int32_t vocab_size, const std::string& name) {
  for (int32_t token : tokens)
    if (token < 0 || token >= vocab_size)
      throw Error(name + ": token id " + std::to_string(token) + " is outside the vocabulary of " +
                  std::to_string(vocab_size));
}

void check_lengths(const SearchOptions& o) {
  require(o.max_new_tokens >= 1, "max_new_tokens", "at least 1", o.max_new_tokens);
  require(o.min_new_tokens >= 0 && o.min_new_tokens <= o.max_new_tokens, "min_new_tokens",
          "0 to max_new_tokens (" + std::to_string(o.max_new_tokens) + ")", o.min_new_tokens);
}

void check_rows(const SearchOptions& o) {
  const std::string most = "1 to " + std::to_string(kMaxRowsPerItem);
  require(o.num_beams >= 1 && o.num_beams <= kMaxRowsPerItem, "num_beams", most, o.num_beams);
  require(o.num_return_sequences >= 1 && o.num_return_sequences <= kMaxRowsPerItem, "num_return_sequences", most,
          o.num_return_sequences);
  if (o.num_beams > 1) {
    require(!o.do_sample, "do_sample", "False with num_beams " + std::to_string(o.num_beams), "True");
    require(o.num_return_sequences <= o.num_beams, "num_return_sequences",
            "at most num_beams (" + std::to_string(o.num_beams) + ")", o.num_return_sequences);
  } else if (!o.do_sample) {
    require(o.num_return_sequences == 1, "num_return_sequences", "1 without beams or sampling", o.num_return_sequences);
  }
}

bool positive(double x) { return x >= FLT_MIN && x <= FLT_MAX; }

void check_numbers(const SearchOptions& o) {
  require(std::isfinite(o.length_penalty), "length_penalty", "a finite number", o.length_penalty);
  require(positive(o.temperature), "temperature", "a float32 number above 0", o.temperature);
  require(o.top_k >= 0, "top_k", "0 (off) or more", o.top_k);
  require(o.top_p >= 0 && o.top_p <= 1, "top_p", "0 to 1", o.top_p);
  require(o.min_p >= 0 && o.min_p <= 1, "min_p", "0 to 1", o.min_p);
  require(positive(o.repetition_penalty), "repetition_penalty", "a float32 number above 0", o.repetition_penalty);
  require(o.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "0 (off) or more", o.no_repeat_ngram_size);
}

// A result is always one of the allowed continuations, so none may be cut short.
void check_allowed(const SearchOptions& o, int32_t vocab_size) {
  if (o.allowed.empty()) return;
  require(!o.forced_bos, "forced_bos_token_id", "None with allowed_token_ids", o.forced_bos.value_or(0));
  require(!o.forced_eos, "forced_eos_token_id", "None with allowed_token_ids", o.forced_eos.value_or(0));
  for (size_t i = 0; i < o.allowed.size(); ++i) {
    const Tokens& tokens = o.allowed[i];
    const std::string name = at("allowed_token_ids", i);
    check_tokens(tokens, vocab_size, name);
    const auto end = std::find_if(tokens.begin(), tokens.end(), [&](int32_t token) { return o.ends(token); });
    const auto length = static_cast<size_t>(end - tokens.begin());
    if (length + 1 < tokens.size())
      throw Error(name + ": the end-of-sequence token " + std::to_string(*end) + " stands before the end");
    require(length <= static_cast<size_t>(o.max_new_tokens), name.c_str(),
            "at most max_new_tokens (" + std::to_string(o.max_new_tokens) + ") tokens", length);
  }
}

}  // namespace

void check(const SearchOptions& o, int32_t vocab_size) {
  require(vocab_size >= 2, "vocab_size", "at least 2", vocab_size);
  check_lengths(o);
  check_rows(o);
  check_numbers(o);
  const size_t most = std::min(kMaxEos, static_cast<size_t>(vocab_size) - 1);
  require(!o.eos.empty() && o.eos.size() <= most, "eos_token_id", "1 to " + std::to_string(most) + " token ids",
          o.eos.size());
  check_tokens(o.eos, vocab_size, "eos_token_id");
  check_tokens(o.suppress_tokens, vocab_size, "suppress_tokens");
  check_tokens(o.begin_suppress_tokens, vocab_size, "begin_suppress_tokens");
  if (o.forced_bos) check_tokens({*o.forced_bos}, vocab_size, "forced_bos_token_id");
  if (o.forced_eos) check_tokens({*o.forced_eos}, vocab_size, "forced_eos_token_id");
  for (size_t i = 0; i < o.bad_words.size(); ++i) {
    if (o.bad_words[i].empty()) throw Error(at("bad_words_ids", i) + ": expected at least one token id, got none");
    check_tokens(o.bad_words[i], vocab_size, at("bad_words_ids", i));
  }
  check_allowed(o, vocab_size);
}

void check_prompts(const std::vector<Tokens>& prompts, int32_t vocab_size) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].empty()) throw Error(at("prompts", i) + ": expected at least one token id, got none");
    check_tokens(prompts[i], vocab_size, at("prompts", i));
  }
}

}  // namespace gitfast::search
