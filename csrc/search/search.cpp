#include "search.h"

#include <cmath>
#include <cstring>
#include <string>

#include "beam.h"
#include "logits.h"
#include "processors.h"
#include "sampling.h"
#include "tensor.h"

namespace gitfast::search {
namespace {

void require(bool ok, const char* option, const char* expected, double got) {
  if (ok) return;
  std::string value = std::to_string(got);
  if (value.find('.') != std::string::npos) value.erase(value.find_last_not_of('0') + 1);
  if (value.back() == '.') value.pop_back();
  throw Error(std::string(option) + ": expected " + expected + ", got " + value);
}

void check_tokens(const std::vector<int32_t>& tokens, int32_t vocab_size, const char* name) {
  for (int32_t token : tokens)
    if (token < 0 || token >= vocab_size)
      throw Error(std::string(name) + ": token id " + std::to_string(token) + " is outside the vocabulary of " +
                  std::to_string(vocab_size));
}

void check_options(const SearchOptions& o, int32_t vocab_size) {
  require(o.max_new_tokens >= 1, "max_new_tokens", "at least 1", o.max_new_tokens);
  require(o.min_new_tokens >= 0 && o.min_new_tokens <= o.max_new_tokens, "min_new_tokens", "0 to max_new_tokens",
          o.min_new_tokens);
  require(o.num_beams >= 1 && o.num_beams <= 1024, "num_beams", "1 to 1024", o.num_beams);
  require(o.num_return_sequences >= 1, "num_return_sequences", "at least 1", o.num_return_sequences);
  if (o.num_beams > 1 && o.do_sample) throw Error("do_sample: cannot be combined with num_beams > 1");
  if (o.num_beams == 1 && !o.do_sample)
    require(o.num_return_sequences == 1, "num_return_sequences", "1 without beams or sampling", o.num_return_sequences);
  if (o.num_beams > 1)
    require(o.num_return_sequences <= o.num_beams, "num_return_sequences", "at most num_beams", o.num_return_sequences);
  require(std::isfinite(o.length_penalty), "length_penalty", "a finite number", o.length_penalty);
  require(o.temperature > 0 && std::isfinite(o.temperature), "temperature", "a number above 0", o.temperature);
  require(o.top_k >= 0, "top_k", "0 (off) or more", o.top_k);
  require(o.top_p > 0 && o.top_p <= 1, "top_p", "a number above 0 and at most 1", o.top_p);
  require(o.min_p >= 0 && o.min_p <= 1, "min_p", "0 to 1", o.min_p);
  require(o.repetition_penalty > 0 && std::isfinite(o.repetition_penalty), "repetition_penalty", "a number above 0",
          o.repetition_penalty);
  require(o.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "0 (off) or more", o.no_repeat_ngram_size);
  check_tokens({o.eos}, vocab_size, "eos_token_id");
  check_tokens(o.suppress_tokens, vocab_size, "suppress_tokens");
  check_tokens(o.begin_suppress_tokens, vocab_size, "begin_suppress_tokens");
  if (o.forced_bos) check_tokens({*o.forced_bos}, vocab_size, "forced_bos_token_id");
  if (o.forced_eos) check_tokens({*o.forced_eos}, vocab_size, "forced_eos_token_id");
  for (const auto& word : o.bad_words) {
    if (word.empty()) throw Error("bad_words_ids: expected non-empty sequences of token ids");
    check_tokens(word, vocab_size, "bad_words_ids");
  }
  for (const auto& sequence : o.allowed) check_tokens(sequence, vocab_size, "allowed_token_ids");
}

// One row that takes the best token, or draws one, until it ends.
class Single {
 public:
  Single(std::vector<int32_t> prompt, int32_t sample)
      : tokens_(std::move(prompt)), prompt_length_(tokens_.size()), sample_(sample) {}

  bool done() const { return done_; }
  int32_t token() const { return tokens_.back(); }
  void stop() { done_ = true; }

  void advance(const SearchOptions& options, const Processors& processors, Sampler& sampler,
               std::vector<float>& scratch, const float* logits, int32_t row) {
    const auto vocab = static_cast<int32_t>(scratch.size());
    const float lse = log_sum_exp(logits, vocab, row);
    const float* scores = logits;
    if (processors.active()) {
      std::memcpy(scratch.data(), logits, scratch.size() * sizeof(float));
      processors.apply(tokens_, prompt_length_, scratch.data());
      scores = scratch.data();
    }
    int32_t token = argmax(scores, vocab);
    if (scores[token] == -INFINITY)
      token = options.eos;  // everything is banned: nothing is left to say
    else if (options.do_sample)
      token = sampler.draw(scores, vocab, uniform(options.seed, static_cast<uint64_t>(sample_), tokens_.size()));
    tokens_.push_back(token);
    logprobs_.push_back(logits[token] - lse);
    stopped_ = token == options.eos;
    done_ = stopped_ || static_cast<int32_t>(logprobs_.size()) >= options.max_new_tokens;
  }

  Result result() const {
    Result r;
    r.tokens.assign(tokens_.begin() + static_cast<int64_t>(prompt_length_), tokens_.end());
    r.logprobs = logprobs_;
    for (float p : logprobs_) r.score += p;
    r.reason = stopped_ ? FinishReason::stop : FinishReason::length;
    return r;
  }

 private:
  std::vector<int32_t> tokens_;
  size_t prompt_length_;
  int32_t sample_;
  std::vector<float> logprobs_;
  bool stopped_ = false;
  bool done_ = false;
};

}  // namespace

// Greedy and sampled items are num_return_sequences `Single`s each; items with beams are one BeamItem each.
struct Search::Impl {
  Impl(const SearchOptions& o, std::vector<std::vector<int32_t>> prompts, int32_t vocab)
      : options(o), vocab_size(vocab), processors(o, vocab), sampler(o), scratch(static_cast<size_t>(vocab)) {
    for (std::vector<int32_t>& prompt : prompts) {
      if (options.num_beams > 1)
        beams.emplace_back(options, processors, std::move(prompt), vocab);
      else
        for (int32_t s = 0; s < options.num_return_sequences; ++s) singles.emplace_back(prompt, s);
    }
    num_items = static_cast<int32_t>(prompts.size());
    rows = num_items;
    list_rows();
  }

  int32_t per_item() const { return options.num_return_sequences; }

  void advance(const float* logits, int64_t stride) {
    parents.clear();
    next_tokens.clear();
    if (options.num_beams > 1)
      advance_beams(logits, stride);
    else
      advance_singles(logits, stride);
    first_step = false;
    rows = static_cast<int32_t>(next_tokens.size());
    list_rows();
  }

  void advance_beams(const float* logits, int64_t stride) {
    int32_t row = 0;
    for (BeamItem& item : beams) {
      if (item.done()) continue;
      const int32_t first = row;
      row += item.num_rows();
      item.advance(logits + first * stride, stride, first);
      for (int32_t r = 0; !item.done() && r < item.num_rows(); ++r) {
        parents.push_back(first + item.parent(r));
        next_tokens.push_back(item.token(r));
      }
    }
  }

  // In the first step the samples of an item share its only row.
  void advance_singles(const float* logits, int64_t stride) {
    int32_t row = 0;
    for (size_t i = 0; i < singles.size(); ++i) {
      if (singles[i].done()) continue;
      const int32_t own = first_step ? static_cast<int32_t>(i) / per_item() : row++;
      singles[i].advance(options, processors, sampler, scratch, logits + own * stride, own);
      if (singles[i].done()) continue;
      parents.push_back(own);
      next_tokens.push_back(singles[i].token());
    }
  }

  void list_rows() {
    items.clear();
    for (size_t i = 0; i < beams.size(); ++i)
      if (!beams[i].done())
        items.insert(items.end(), static_cast<size_t>(beams[i].num_rows()), static_cast<int32_t>(i));
    if (first_step && beams.empty()) {
      for (int32_t i = 0; i < num_items; ++i) items.push_back(i);
      return;
    }
    for (size_t i = 0; i < singles.size(); ++i)
      if (!singles[i].done()) items.push_back(static_cast<int32_t>(i) / per_item());
  }

  SearchOptions options;
  int32_t vocab_size;
  Processors processors;
  Sampler sampler;
  std::vector<float> scratch;
  std::vector<Single> singles;
  std::vector<BeamItem> beams;
  int32_t num_items = 0;
  int32_t rows = 0;
  bool first_step = true;
  std::vector<int32_t> next_tokens, parents, items;
};

Search::Search(const SearchOptions& options, std::vector<std::vector<int32_t>> prompts, int32_t vocab_size) {
  check_options(options, vocab_size);
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].empty()) throw Error("prompts[" + std::to_string(i) + "]: expected at least one token id");
    check_tokens(prompts[i], vocab_size, "prompts");
  }
  impl_ = std::make_unique<Impl>(options, std::move(prompts), vocab_size);
}

Search::~Search() = default;
Search::Search(Search&&) noexcept = default;
Search& Search::operator=(Search&&) noexcept = default;

bool Search::done() const { return impl_->rows == 0; }
int32_t Search::vocab_size() const { return impl_->vocab_size; }
int32_t Search::num_rows() const { return impl_->rows; }
const std::vector<int32_t>& Search::tokens() const { return impl_->next_tokens; }
const std::vector<int32_t>& Search::parents() const { return impl_->parents; }
const std::vector<int32_t>& Search::items() const { return impl_->items; }

void Search::advance(const float* logits, int64_t row_stride) {
  if (done()) throw Error("search: is done");
  impl_->advance(logits, row_stride);
}

void Search::stop() {
  for (Single& s : impl_->singles) s.stop();
  for (BeamItem& b : impl_->beams) b.stop();
  impl_->rows = 0;
  impl_->list_rows();
}

std::vector<std::vector<Result>> Search::results() const {
  std::vector<std::vector<Result>> out;
  for (const BeamItem& item : impl_->beams) out.push_back(item.results());
  for (size_t i = 0; i < impl_->singles.size(); ++i) {
    if (i % static_cast<size_t>(impl_->per_item()) == 0) out.emplace_back();
    out.back().push_back(impl_->singles[i].result());
  }
  return out;
}

}  // namespace gitfast::search
