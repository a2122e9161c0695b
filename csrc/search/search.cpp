#include "search.h"

#include "beam.h"
#include "logits.h"
#include "options.h"
#include "processors.h"
#include "sampling.h"
#include "single.h"
#include "tensor.h"

namespace gitfast::search {

// With beams, an item is one BeamItem; otherwise it is num_return_sequences Singles, neighbours in `singles`.
struct Search::Impl {
  Impl(const SearchOptions& o, std::vector<Tokens> prompts, int32_t vocab)
      : options(o),
        vocab_size(vocab),
        processors(o, vocab),
        sampler(o, vocab),
        scratch(static_cast<size_t>(vocab)),
        beam_scratch(vocab) {
    for (Tokens& prompt : prompts) {
      items.push_back(static_cast<int32_t>(items.size()));
      if (options.num_beams > 1)
        beams.emplace_back(options, processors, std::move(prompt));
      else
        for (int32_t sample = 0; sample < options.num_return_sequences; ++sample) singles.emplace_back(prompt, sample);
    }
  }

  void advance(const float* logits, int64_t row_stride) {
    normalizers.clear();
    for (size_t r = 0; r < items.size(); ++r) {
      const auto row = static_cast<int64_t>(r);
      normalizers.push_back(normalizer(logits + row * row_stride, vocab_size, row));
    }
    items.clear();
    parents.clear();
    tokens.clear();
    if (options.num_beams > 1)
      advance_beams(logits, row_stride);
    else
      advance_singles(logits, row_stride);
    first_step = false;
  }

  void advance_beams(const float* logits, int64_t row_stride) {
    int32_t row = 0;
    for (size_t i = 0; i < beams.size(); ++i) {
      BeamItem& item = beams[i];
      if (item.done()) continue;
      const int32_t first = row;
      row += item.num_rows();
      item.advance(logits + first * row_stride, row_stride, &normalizers[static_cast<size_t>(first)], beam_scratch);
      if (item.done()) continue;
      for (int32_t r = 0; r < item.num_rows(); ++r) add_row(i, first + item.parent(r), item.token(r));
    }
  }

  // In the first step the samples of an item share its only row.
  void advance_singles(const float* logits, int64_t row_stride) {
    const auto per_item = static_cast<size_t>(options.num_return_sequences);
    int32_t row = 0;
    for (size_t i = 0; i < singles.size(); ++i) {
      Single& single = singles[i];
      if (single.done()) continue;
      const int32_t own = first_step ? static_cast<int32_t>(i / per_item) : row++;
      single.advance(options, processors, sampler, logits + own * row_stride, normalizers[static_cast<size_t>(own)],
                     scratch);
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

  std::vector<std::vector<Result>> results() const {
    std::vector<std::vector<Result>> out;
    for (const BeamItem& item : beams) out.push_back(item.results());
    for (size_t i = 0; i < singles.size(); ++i) {
      if (i % static_cast<size_t>(options.num_return_sequences) == 0) out.emplace_back();
      out.back().push_back(singles[i].result());
    }
    return out;
  }

  const SearchOptions options;
  const int32_t vocab_size;
  const Processors processors;
  Sampler sampler;
  std::vector<float> scratch;
  BeamScratch beam_scratch;
  std::vector<Normalizer> normalizers;  // of the rows of this step
  std::vector<Single> singles;
  std::vector<BeamItem> beams;
  bool first_step = true;
  Tokens tokens;
  std::vector<int32_t> parents, items;
};

Search::Search(const SearchOptions& options, std::vector<Tokens> prompts, int32_t vocab_size) {
  check(options, prompts, vocab_size);
  impl_ = std::make_unique<Impl>(options, std::move(prompts), vocab_size);
}

Search::~Search() = default;
Search::Search(Search&&) noexcept = default;
Search& Search::operator=(Search&&) noexcept = default;

bool Search::done() const { return impl_->items.empty(); }
int32_t Search::vocab_size() const { return impl_->vocab_size; }
int32_t Search::num_rows() const { return static_cast<int32_t>(impl_->items.size()); }
const Tokens& Search::tokens() const { return impl_->tokens; }
const std::vector<int32_t>& Search::parents() const { return impl_->parents; }
const std::vector<int32_t>& Search::items() const { return impl_->items; }

void Search::advance(const float* logits, int64_t row_stride) {
  if (done()) throw Error("advance: the search is done");
  impl_->advance(logits, row_stride);
}

void Search::stop() { impl_->stop(); }

std::vector<std::vector<Result>> Search::results() const { return impl_->results(); }

}  // namespace gitfast::search
