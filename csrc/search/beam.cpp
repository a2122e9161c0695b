#include "beam.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "logits.h"

namespace gitfast::search {

BeamItem::BeamItem(const SearchOptions& options, const Processors& processors, std::vector<int32_t> prompt,
                   int32_t vocab_size)
    : options_(options),
      processors_(processors),
      prompt_length_(prompt.size()),
      vocab_size_(vocab_size),
      scores_(static_cast<size_t>(vocab_size)) {
  running_.push_back({std::move(prompt), {}, 0, 0, false});
}

// The 2 K best continuations of the running beams, best first; ties go to the lower beam, then the lower token.
std::vector<BeamItem::Candidate> BeamItem::best_candidates(const float* logits, int64_t row_stride, int32_t first_row) {
  const auto keep = static_cast<size_t>(2 * options_.num_beams);
  const auto better = [](const Candidate& a, const Candidate& b) { return a.score > b.score; };
  std::vector<Candidate> best;  // a heap whose top is the worst kept
  for (int32_t row = 0; row < num_rows(); ++row) {
    const float* x = logits + row * row_stride;
    const float lse = log_sum_exp(x, vocab_size_, first_row + row);
    for (int32_t v = 0; v < vocab_size_; ++v) scores_[static_cast<size_t>(v)] = x[v] - lse;
    const Hypothesis& beam = running_[static_cast<size_t>(row)];
    if (processors_.active()) processors_.apply(beam.tokens, prompt_length_, scores_.data());
    for (int32_t v = 0; v < vocab_size_; ++v) {
      const float score = scores_[static_cast<size_t>(v)] + beam.score;
      if (!(score > -INFINITY) || (best.size() == keep && !(score > best.front().score))) continue;
      if (best.size() == keep) {
        std::pop_heap(best.begin(), best.end(), better);
        best.pop_back();
      }
      best.push_back({score, row, v, x[v] - lse});
      std::push_heap(best.begin(), best.end(), better);
    }
  }
  std::sort(best.begin(), best.end(), [](const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.row != b.row ? a.row < b.row : a.token < b.token;
  });
  return best;
}

BeamItem::Hypothesis BeamItem::extend(const Candidate& c) const {
  Hypothesis next = running_[static_cast<size_t>(c.row)];
  next.tokens.push_back(c.token);
  next.logprobs.push_back(c.logprob);
  next.score = c.score;
  next.parent = c.row;
  next.stopped = c.token == options_.eos;
  return next;
}

// transformers: score / new_tokens ** alpha. The paper's: score / ((5 + length) / 6) ** alpha, length with the prompt
// and without the end-of-sequence token (Wu et al. 2016).
float BeamItem::normalized(float score, int64_t new_tokens, bool ends_in_eos) const {
  const double alpha = options_.length_penalty;
  double length = static_cast<double>(new_tokens);
  if (options_.length_penalty_form == LengthPenaltyForm::paper)
    length = (5.0 + static_cast<double>(prompt_length_) + length - (ends_in_eos ? 1 : 0)) / 6.0;
  return score / static_cast<float>(std::pow(length, alpha));
}

void BeamItem::keep_finished(Hypothesis hypothesis) {
  const auto place = std::upper_bound(finished_.begin(), finished_.end(), hypothesis.score,
                                      [](float score, const Hypothesis& other) { return score > other.score; });
  finished_.insert(place, std::move(hypothesis));
  if (finished_.size() > static_cast<size_t>(options_.num_beams)) finished_.pop_back();
}

void BeamItem::advance(const float* logits, int64_t row_stride, int32_t first_row) {
  const std::vector<Candidate> candidates = best_candidates(logits, row_stride, first_row);
  const auto beams = static_cast<size_t>(options_.num_beams);
  const auto new_tokens = static_cast<int64_t>(running_[0].tokens.size() - prompt_length_) + 1;
  const bool last_step = new_tokens >= options_.max_new_tokens;

  std::vector<Hypothesis> next;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const bool ends = candidates[i].token == options_.eos;
    if (!ends && !last_step) {
      if (next.size() < beams) next.push_back(extend(candidates[i]));
    } else if (i < beams) {  // a finished candidate counts only among the best K
      Hypothesis hypothesis = extend(candidates[i]);
      hypothesis.score = normalized(hypothesis.score, new_tokens, ends);
      keep_finished(std::move(hypothesis));
    }
  }
  running_ = std::move(next);
  const bool full = finished_.size() == beams;
  done_ = running_.empty() || (full && (options_.early_stopping == EarlyStopping::yes || !can_improve(new_tokens)));
}

// Whether the best running beam could still beat the worst finished one, by transformers' estimate of its length.
bool BeamItem::can_improve(int64_t new_tokens) const {
  const bool longest = options_.early_stopping == EarlyStopping::never && options_.length_penalty > 0;
  const int64_t length = longest ? options_.max_new_tokens : new_tokens;
  return normalized(running_[0].score, length, false) > finished_.back().score;
}

void BeamItem::stop() {
  if (done_) return;
  const auto new_tokens = static_cast<int64_t>(running_[0].tokens.size() - prompt_length_);
  for (Hypothesis& h : running_) {
    if (new_tokens > 0) h.score = normalized(h.score, new_tokens, false);
    keep_finished(std::move(h));
  }
  running_.clear();
  done_ = true;
}

std::vector<Result> BeamItem::results() const {
  std::vector<Result> out;
  for (const Hypothesis& h : finished_) {
    if (out.size() == static_cast<size_t>(options_.num_return_sequences)) break;
    Result r;
    r.tokens.assign(h.tokens.begin() + static_cast<int64_t>(prompt_length_), h.tokens.end());
    r.logprobs = h.logprobs;
    r.score = h.score;
    r.reason = h.stopped ? FinishReason::stop : FinishReason::length;
    out.push_back(std::move(r));
  }
  return out;
}

}  // namespace gitfast::search
