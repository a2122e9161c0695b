// Beam search of one item: candidates, finished beams, and when to stop.
#include "beam.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace gitfast::search {
namespace {

// The number that transformers adds to scores that must not win. Here such entries never become sequences, but they
// take part in the choice of the best, whose order of equal scores depends on all values.
constexpr float kAside = -1e9f;

}  // namespace

float length_norm(const SearchOptions& options, int32_t length) {
  const bool paper = options.length_penalty_form == LengthPenaltyForm::paper;
  const double base = paper ? (5.0 + length) / 6.0 : length;
  return static_cast<float>(std::clamp<double>(std::pow(base, options.length_penalty), FLT_MIN, FLT_MAX));
}

BeamItem::BeamItem(const Rules& rules, Tokens prompt)
    : options_(rules.options),
      processors_(rules.processors),
      vocab_size_(rules.vocab_size),
      num_beams_(static_cast<size_t>(rules.options.num_beams)),
      prompt_length_(prompt.size()),
      running_(1),
      finished_(num_beams_) {
  running_[0].tokens = std::move(prompt);
  for (Hypothesis& place : finished_) place.score = kAside;
}

void BeamItem::advance(const float* logits, int64_t row_stride, const Normalizer* normalizers, BeamScratch& scratch) {
  if (!find_candidates(logits, row_stride, normalizers, true, scratch))
    find_candidates(logits, row_stride, normalizers, false, scratch);
  ++new_tokens_;
  const bool last_step = new_tokens_ == options_.max_new_tokens;
  for (Candidate& c : candidates_) c.ends = options_.ends(c.token) || last_step;
  keep_finished(scratch.top_k);
  find_running(scratch.top_k);
  if (next_.empty() && !finished(1)) keep_any();
  running_.swap(next_);
  done_ =
      running_.empty() || (finished(num_beams_) && (options_.early_stopping == EarlyStopping::yes || !can_improve()));
}

// The (1 + E) K best of K * V, for E tokens that end. At most E K of these end, which leaves K that go on.
bool BeamItem::find_candidates(const float* logits, int64_t row_stride, const Normalizer* normalizers, bool rules_hold,
                               BeamScratch& scratch) {
  const int64_t vocab_size = vocab_size_;
  scratch.scores.resize(static_cast<size_t>(vocab_size));
  const auto beams = static_cast<int64_t>(num_beams_);
  float* scores = scratch.scores.data();
  scratch.top_k.start(static_cast<int64_t>(1 + options_.eos.size()) * beams, beams * vocab_size);
  for (int64_t beam = 0; beam < beams; ++beam) {
    const bool absent = beam >= num_rows();  // in the first step all but one: copies of it, set aside
    const int64_t row = absent ? 0 : beam;
    const Hypothesis& hypothesis = running_[static_cast<size_t>(row)];
    log_softmax(logits + row * row_stride, vocab_size, normalizers[row], scores);
    const History history{hypothesis.tokens, prompt_length_};
    if (!rules_hold)
      processors_.give_way(history, scores);
    else if (processors_.active())
      processors_.apply(history, scores);
    const float so_far = absent ? kAside : hypothesis.score;
    for (int64_t v = 0; v < vocab_size; ++v) scores[v] += so_far;
    scratch.top_k.add(scores, vocab_size);
  }

  candidates_.clear();
  bool any = false;
  for (const TopK::Entry& entry : scratch.top_k.finish()) {
    const int64_t row = entry.index / vocab_size, token = entry.index % vocab_size;
    const bool exists = row < num_rows() && entry.value > -INFINITY;
    const float logprob = exists ? normalizers[row].log_probability(logits[row * row_stride + token]) : 0.0f;
    candidates_.push_back(
        {entry.value, static_cast<int32_t>(row), static_cast<int32_t>(token), logprob, exists, false});
    any = any || exists;
  }
  return any;
}

// Only the K best candidates may finish; the others are there to keep K running.
void BeamItem::keep_finished(TopK& top_k) {
  values_.clear();
  for (const Hypothesis& place : finished_) values_.push_back(place.score);
  for (size_t i = 0; i < candidates_.size(); ++i) {
    Candidate& c = candidates_[i];
    const bool finishes = c.exists && c.ends && i < num_beams_;
    values_.push_back(normalized(c.score, new_tokens_, options_.ends(c.token)) + (finishes ? 0.0f : kAside));
  }
  next_.resize(num_beams_);
  size_t place = 0;
  for (const TopK::Entry& entry : top_k.of(values_, static_cast<int64_t>(num_beams_))) {
    const auto i = static_cast<size_t>(entry.index);
    Hypothesis& kept = next_[place++];
    if (i < num_beams_) {
      std::swap(kept, finished_[i]);
      continue;
    }
    const Candidate& c = candidates_[i - num_beams_];
    kept.finished = c.exists && c.ends && i - num_beams_ < num_beams_;
    if (kept.finished) extend(c, kept);
    kept.score = entry.value;
  }
  finished_.swap(next_);
}

void BeamItem::find_running(TopK& top_k) {
  values_.clear();
  for (const Candidate& c : candidates_) values_.push_back(c.score + (c.ends ? kAside : 0.0f));
  next_.resize(num_beams_);
  size_t beams = 0;
  for (const TopK::Entry& entry : top_k.of(values_, static_cast<int64_t>(num_beams_))) {
    const Candidate& c = candidates_[static_cast<size_t>(entry.index)];
    if (!c.exists || c.ends) continue;
    Hypothesis& kept = next_[beams++];
    extend(c, kept);
    kept.finished = false;
    kept.score = c.score;
  }
  next_.resize(beams);
}

// An item always has a result, even where the only tokens left are impossible, or scores fall below all set aside.
void BeamItem::keep_any() {
  const auto best = std::find_if(candidates_.begin(), candidates_.end(), [](const Candidate& c) { return c.exists; });
  const Candidate none{-INFINITY, 0, options_.eos.front(), -INFINITY, true, true};
  const Candidate& c = best != candidates_.end() ? *best : none;
  Hypothesis& kept = finished_[0];
  extend(c, kept);
  kept.finished = true;
  kept.score = normalized(c.score, new_tokens_, kept.stopped);
}

void BeamItem::extend(const Candidate& c, Hypothesis& out) const {
  const Hypothesis& from = running_[static_cast<size_t>(c.row)];
  out.tokens = from.tokens;
  out.tokens.push_back(c.token);
  out.logprobs = from.logprobs;
  out.logprobs.push_back(c.logprob);
  out.parent = c.row;
  out.stopped = options_.ends(c.token);
}

float BeamItem::normalized(float score, int32_t new_tokens, bool ends_in_eos) const {
  const bool paper = options_.length_penalty_form == LengthPenaltyForm::paper;
  const int32_t more = paper ? static_cast<int32_t>(prompt_length_) - (ends_in_eos ? 1 : 0) : 0;
  return score / length_norm(options_, new_tokens + more);
}

bool BeamItem::finished(size_t count) const {
  const auto n = std::count_if(finished_.begin(), finished_.end(), [](const Hypothesis& h) { return h.finished; });
  return static_cast<size_t>(n) >= count;
}

// True if the best running beam could still beat the worst finished one, by transformers' guess at its final length.
bool BeamItem::can_improve() const {
  const bool at_full_length = options_.early_stopping == EarlyStopping::never && options_.length_penalty > 0;
  const int32_t length = at_full_length ? options_.max_new_tokens : new_tokens_;
  return normalized(running_[0].score, length, false) > finished_.back().score;
}

void BeamItem::stop() {
  if (done_) return;
  finished_.erase(std::remove_if(finished_.begin(), finished_.end(), [](const Hypothesis& h) { return !h.finished; }),
                  finished_.end());
  for (Hypothesis& h : running_) {
    if (new_tokens_ > 0) h.score = normalized(h.score, new_tokens_, false);
    h.finished = true;
    const auto behind_equals =
        std::upper_bound(finished_.begin(), finished_.end(), h.score,
                         [](float score, const Hypothesis& other) { return score > other.score; });
    finished_.insert(behind_equals, std::move(h));
  }
  running_.clear();
  done_ = true;
}

std::vector<Result> BeamItem::results() const {
  std::vector<Result> out;
  for (const Hypothesis& h : finished_) {
    if (out.size() == static_cast<size_t>(options_.num_return_sequences)) break;
    if (!h.finished) continue;
    Result r;
    r.tokens.assign(h.tokens.begin() + static_cast<std::ptrdiff_t>(prompt_length_), h.tokens.end());
    r.logprobs = h.logprobs;
    r.score = static_cast<double>(h.score);
    r.reason = h.stopped ? FinishReason::stop : FinishReason::length;
    out.push_back(std::move(r));
  }
  return out;
}

}  // namespace gitfast::search
