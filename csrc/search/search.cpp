// The search over all items: logits in, tokens and parents out.
#include "search.h"

#include <random>

#include "beam.h"
#include "logits.h"
#include "rules.h"
#include "sampling.h"
#include "single.h"
#include "tensor.h"

namespace gitfast::search {

uint64_t seed_of_item(const SearchOptions& options) {
  if (options.seed || !options.do_sample) return options.seed.value_or(0);
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

RulesPtr make_rules(const SearchOptions& options, int32_t vocab_size) {
  return std::make_shared<const Rules>(options, vocab_size);
}

const SearchOptions& options_of(const Rules& rules) { return rules.options; }

// With beams, an item is one BeamItem; otherwise it is num_return_sequences Singles, neighbours in `singles`.
struct Search::Impl {
  Impl(RulesPtr shared, std::vector<Tokens> prompts)
      : rules(std::move(shared)),
        options(rules->options),
        num_items(static_cast<int32_t>(prompts.size())),
        sampler(options) {
    for (Tokens& prompt : prompts) {
      items.push_back(static_cast<int32_t>(items.size()));
      if (options.num_beams > 1) {
        beams.emplace_back(*rules, std::move(prompt));
        continue;
      }
      const uint64_t seed = seed_of_item(options);
      for (int32_t sample = 0; sample < options.num_return_sequences; ++sample)
        singles.emplace_back(prompt, seed, sample);
    }
  }

  void advance(const float* logits, int64_t row_stride, const Normalizer* normalizers) {
    items.clear();
    parents.clear();
    tokens.clear();
    if (options.num_beams > 1)
      advance_beams(logits, row_stride, normalizers);
    else
      advance_singles(logits, row_stride, normalizers);
    first_step = false;
  }

  void advance_beams(const float* logits, int64_t row_stride, const Normalizer* normalizers) {
    int32_t row = 0;
    for (size_t i = 0; i < beams.size(); ++i) {
      BeamItem& item = beams[i];
      if (item.done()) continue;
      const int32_t first = row;
      row += item.num_rows();
      item.advance(logits + first * row_stride, row_stride, normalizers + first, beam_scratch);
      if (item.done()) continue;
      for (int32_t r = 0; r < item.num_rows(); ++r) add_row(i, first + item.parent(r), item.token(r));
    }
  }

  // In the first step the samples of an item share its only row.
  void advance_singles(const float* logits, int64_t row_stride, const Normalizer* normalizers) {
    const auto per_item = static_cast<size_t>(options.num_return_sequences);
    int32_t next_row = 0;
    for (size_t i = 0; i < singles.size(); ++i) {
      Single& single = singles[i];
      if (single.done()) continue;
      const int32_t own = next_row;
      if (!first_step || (i + 1) % per_item == 0) ++next_row;
      single.advance(*rules, sampler, logits + own * row_stride, normalizers[own], scratch);
      if (!single.done()) add_row(i / per_item, own, single.token());
    }
  }

  void add_row(size_t item, int32_t parent, int32_t token) {
    items.push_back(static_cast<int32_t>(item));
    parents.push_back(parent);
    tokens.push_back(token);
  }

  void stop() {
    for (Single& single : singles) single.stop();
    for (BeamItem& item : beams) item.stop();
    items.clear();
    parents.clear();
    tokens.clear();
  }

  void stop(int32_t item) {
    const auto i = static_cast<size_t>(item), per_item = static_cast<size_t>(options.num_return_sequences);
    if (options.num_beams > 1) beams.at(i).stop();
    for (size_t s = i * per_item; options.num_beams == 1 && s < (i + 1) * per_item; ++s) singles.at(s).stop();
    size_t kept = 0;
    for (size_t r = 0; r < items.size(); ++r) {
      if (items[r] == item) continue;
      items[kept] = items[r];
      if (!first_step) {
        parents[kept] = parents[r];
        tokens[kept] = tokens[r];
      }
      ++kept;
    }
    items.resize(kept);
    if (!first_step) {
      parents.resize(kept);
      tokens.resize(kept);
    }
  }

  std::vector<std::vector<Result>> results() const {
    std::vector<std::vector<Result>> out;
    for (const BeamItem& item : beams) out.push_back(item.results());
    for (size_t i = 0; i < singles.size(); ++i) {
      if (i % static_cast<size_t>(options.num_return_sequences) == 0) out.emplace_back();
      out.back().push_back(singles[i].result());
    }
    return out;
  }

  const RulesPtr rules;
  const SearchOptions& options;
  const int32_t num_items;
  Sampler sampler;
  std::vector<float> scratch;
  BeamScratch beam_scratch;
  std::vector<Single> singles;
  std::vector<BeamItem> beams;
  bool first_step = true;
  Tokens tokens;
  std::vector<int32_t> parents, items;
};

Search::Search(RulesPtr rules, std::vector<Tokens> prompts) {
  check_prompts(prompts, rules->vocab_size);
  impl_ = std::make_unique<Impl>(std::move(rules), std::move(prompts));
}

Search::~Search() = default;
Search::Search(Search&&) noexcept = default;
Search& Search::operator=(Search&&) noexcept = default;

bool Search::done() const { return impl_->items.empty(); }
int32_t Search::vocab_size() const { return impl_->rules->vocab_size; }
int32_t Search::num_items() const { return impl_->num_items; }
int32_t Search::num_rows() const { return static_cast<int32_t>(impl_->items.size()); }
const Tokens& Search::tokens() const { return impl_->tokens; }
const std::vector<int32_t>& Search::parents() const { return impl_->parents; }
const std::vector<int32_t>& Search::items() const { return impl_->items; }

void Search::advance(const float* logits, int64_t row_stride) {
  std::vector<Normalizer> normalizers;
  for (int64_t row = 0; row < num_rows(); ++row)
    normalizers.push_back(normalizer(logits + row * row_stride, vocab_size(), row));
  advance(logits, row_stride, normalizers.data());
}

void Search::advance(const float* logits, int64_t row_stride, const Normalizer* normalizers) {
  if (done()) throw Error("advance: the search is done");
  impl_->advance(logits, row_stride, normalizers);
}

void Search::stop() { impl_->stop(); }
void Search::stop(int32_t item) { impl_->stop(item); }

std::vector<std::vector<Result>> Search::results() const { return impl_->results(); }

}  // namespace gitfast::search
