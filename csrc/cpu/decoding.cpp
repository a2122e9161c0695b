// The running batch: sequences joining, sharing steps and leaving.
#include "decoding.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "search/logits.h"

namespace gitfast::cpu {
namespace {

constexpr int64_t kPrefillTokens = 512;   // of prompts and scored sequences in one step, if no single one has more
constexpr int64_t kHeadRows = 64;         // rows of logits held at once, if no single search needs more
constexpr size_t kIdleBytes = 32u << 20;  // workspace kept while nothing is decoded

// The number of largest logits that decide a row's next token: one, and as many as rules may rule out. 0: all do.
int64_t logits_that_decide(const search::SearchOptions& o) {
  const bool greedy = o.num_beams == 1 && !o.do_sample && o.num_return_sequences == 1;
  if (!greedy || o.repetition_penalty != 1 || o.no_repeat_ngram_size != 0 || !o.allowed.empty()) return 0;
  const size_t ruled_out = o.bad_words.size() + o.suppress_tokens.size() + o.begin_suppress_tokens.size();
  constexpr size_t kLast = 1;  // ban_last_token; min_new_tokens rules out all that end
  const auto count = static_cast<int64_t>(1 + ruled_out + o.eos.size() + kLast);
  constexpr int64_t kMany = 100;
  return count <= kMany ? count : 0;
}

int64_t size_of(const std::vector<int32_t>& ids) { return static_cast<int64_t>(ids.size()); }

// Reserves more than asked for, so that asking for one more each time is cheap.
template <class T>
void make_room(std::vector<T>& values, size_t count) {
  if (values.capacity() < count) values.reserve(2 * count);
}

}  // namespace

struct Decoding::Sequence {
  Handle handle = 0;
  PrefixPtr prefix;
  search::Tokens ids;  // the prompt, or all of a scored sequence
  // A generation has a search; otherwise scores or logits are wanted of every token.
  std::unique_ptr<search::Search> search;
  int64_t deciding = 0;  // logits that decide
  std::vector<float> scores;
  LogitsPtr logits;
  int64_t first_row = 0;

  int64_t reserved_slots = 0;
  int64_t width = 1;                       // rows at most
  std::vector<std::vector<int32_t>> rows;  // the slots of each; none before the first step
  size_t first_token = 0, last_token = 0;  // of this step: those of rows, in order
  bool fresh = true;                       // runs its whole text
  std::exception_ptr error;

  // Rows of logits that the search reads in this step.
  int64_t head_rows() const { return fresh ? 1 : static_cast<int64_t>(rows.size()); }
};

int32_t Decoding::Slots::take() {
  if (free_.empty()) {
    make_room(free_, uses_.size() + 1);  // for all to be given back
    uses_.push_back(1);
    return static_cast<int32_t>(uses_.size()) - 1;
  }
  std::pop_heap(free_.begin(), free_.end(), std::greater<>());
  const int32_t slot = free_.back();
  free_.pop_back();
  uses_[static_cast<size_t>(slot)] = 1;
  return slot;
}

void Decoding::Slots::share(const std::vector<int32_t>& slots) {
  for (int32_t slot : slots) ++uses_[static_cast<size_t>(slot)];
}

void Decoding::Slots::drop(const std::vector<int32_t>& slots) {
  for (int32_t slot : slots)
    if (--uses_[static_cast<size_t>(slot)] == 0) {
      free_.push_back(slot);
      std::push_heap(free_.begin(), free_.end(), std::greater<>());
    }
}

void Decoding::Slots::clear() {
  free_.clear();
  uses_.clear();
}

Decoding::Decoding(const TextModel& model)
    : model_(model), text_(model.config, model.pool.num_threads()), compute_(model.kernels, model.pool) {}

Decoding::~Decoding() = default;

Decoding::Handle Decoding::generate(PrefixPtr prefix, search::Tokens prompt, const search::RulesPtr& rules) {
  const search::SearchOptions& options = search::options_of(*rules);
  auto sequence = std::make_unique<Sequence>();
  sequence->prefix = std::move(prefix);
  sequence->search = std::make_unique<search::Search>(rules, std::vector<search::Tokens>{prompt});
  sequence->ids = std::move(prompt);
  sequence->deciding = model_.quick_head ? logits_that_decide(options) : 0;
  sequence->width = std::max(options.num_beams, options.num_return_sequences);
  // The last token is never run. Each row of a step has a slot of its own for its new token.
  sequence->reserved_slots = size_of(sequence->ids) + sequence->width * (options.max_new_tokens - 1);
  return add(std::move(sequence));
}

Decoding::Handle Decoding::score(PrefixPtr prefix, search::Tokens ids) {
  auto sequence = std::make_unique<Sequence>();
  sequence->prefix = std::move(prefix);
  sequence->reserved_slots = size_of(ids);
  sequence->scores.resize(ids.size() - 1);
  sequence->ids = std::move(ids);
  return add(std::move(sequence));
}

Decoding::Handle Decoding::logits(PrefixPtr prefix, search::Tokens ids, LogitsPtr out, int64_t first_row) {
  auto sequence = std::make_unique<Sequence>();
  sequence->prefix = std::move(prefix);
  sequence->reserved_slots = size_of(ids);
  sequence->ids = std::move(ids);
  sequence->logits = std::move(out);
  sequence->first_row = first_row;
  return add(std::move(sequence));
}

Decoding::Handle Decoding::add(SequencePtr sequence) {
  reserve(*sequence);
  const Handle handle = sequence->handle = next_handle_++;
  const Sequence& added = *waiting_.emplace_back(std::move(sequence));
  reserved_slots_ += added.reserved_slots;
  reserved_rows_ += added.width;
  return handle;
}

void Decoding::reserve(const Sequence& sequence) {
  const size_t all = waiting_.size() + running_.size() + 1;
  make_room(running_, all);
  make_room(events_, all);
  const int64_t slots = reserved_slots_ + sequence.reserved_slots, rows = reserved_rows_ + sequence.width;
  if (slots > max_slots_) {
    const int64_t room = std::max(slots, max_slots_ + max_slots_ / 2);
    text_.reserve(room, slots_.highest(), 0, 0);
    max_slots_ = room;
  }
  int64_t prefill = size_of(sequence.ids), longest = prefill;
  for (const SequencePtr& other : waiting_) {
    prefill += size_of(other->ids);
    longest = std::max(longest, size_of(other->ids));
    if (prefill > kPrefillTokens && longest >= kPrefillTokens) break;
  }
  const int64_t tokens = rows + std::min(prefill, std::max(kPrefillTokens, longest));
  text_.reserve(0, 0, tokens, sequence.prefix ? sequence.prefix->tokens : 0);
  tokens_.reserve(static_cast<size_t>(tokens));
  const int64_t head_rows = std::max(std::min(kHeadRows, std::max(rows, prefill)), sequence.width);
  if (head_rows > head_rows_) {
    Buffer inputs = float_buffer(head_rows * model_.config.hidden_size);
    logits_ = float_buffer(head_rows * model_.config.vocab_size);
    inputs_ = std::move(inputs);
    head_rows_ = head_rows;
  }
}

bool Decoding::cancel(Handle handle) {
  const auto is_it = [&](const SequencePtr& s) { return s->handle == handle; };
  const auto waits = std::find_if(waiting_.begin(), waiting_.end(), is_it);
  const auto runs = waits == waiting_.end() ? std::find_if(running_.begin(), running_.end(), is_it) : running_.end();
  if (waits != waiting_.end()) {
    retire(**waits);
    waiting_.erase(waits);
  } else if (runs != running_.end()) {
    retire(**runs);
    running_.erase(runs);
  } else {
    return false;
  }
  if (empty()) let_go();
  return true;
}

std::unique_ptr<Decoding::Event> Decoding::stop(Handle handle) {
  for (const SequencePtr& sequence : running_) {
    if (sequence->handle != handle || !sequence->search) continue;
    auto event = std::make_unique<Event>();
    event->handle = handle;
    event->done = true;
    sequence->search->stop();
    event->results = std::move(sequence->search->results()[0]);
    cancel(handle);
    return event;
  }
  return nullptr;
}

std::vector<Decoding::Event>& Decoding::step() {
  events_.clear();
  if (empty()) return events_;
  try {
    admit();
    begin_tokens();
    run_heads(text_.forward(compute_, model_.weights, tokens_));
  } catch (...) {  // memory, most likely: what was begun cannot be gone on with
    for (const SequencePtr& sequence : running_)
      if (!sequence->error) sequence->error = std::current_exception();
  }
  finish_step();
  return events_;
}

// Whole texts, as many as one step may hold; each beside those that share its prefix.
void Decoding::admit() {
  int64_t tokens = 0;
  while (!waiting_.empty()) {
    tokens += size_of(waiting_.front()->ids);
    if (tokens > kPrefillTokens && tokens > size_of(waiting_.front()->ids)) break;
    SequencePtr next = std::move(waiting_.front());
    waiting_.pop_front();
    const auto neighbour = std::find_if(running_.rbegin(), running_.rend(),
                                        [&](const SequencePtr& other) { return other->prefix == next->prefix; });
    running_.insert(neighbour == running_.rend() ? running_.end() : neighbour.base(), std::move(next));
  }
}

void Decoding::begin_tokens() {
  tokens_.clear();
  bool goes_on = false;
  for (const SequencePtr& s : running_) {
    s->first_token = tokens_.size();
    if (s->fresh) {
      std::vector<int32_t>& slots = s->rows.emplace_back();
      slots.reserve(static_cast<size_t>(s->reserved_slots));
      for (size_t t = 0; t < s->ids.size(); ++t) slots.push_back(slots_.take());
      for (size_t t = 0; t < s->ids.size(); ++t)
        tokens_.push_back({s->ids[t], static_cast<int32_t>(t), s->prefix.get(), slots.data()});
      counts_.prefill_tokens += size_of(s->ids);
    } else {
      goes_on = true;
      counts_.decode_rows += static_cast<int64_t>(s->rows.size());
      for (size_t r = 0; r < s->rows.size(); ++r) {
        std::vector<int32_t>& slots = s->rows[r];
        slots.push_back(slots_.take());
        const auto position = static_cast<int32_t>(slots.size()) - 1;
        tokens_.push_back({s->search->tokens()[r], position, s->prefix.get(), slots.data()});
      }
    }
    s->last_token = tokens_.size();
  }
  counts_.decode_steps += goes_on;
}

void Decoding::run_heads(const float* hidden) {
  run_generations(hidden);
  run_scores(hidden);
  run_logits(hidden);
}

void Decoding::run_generations(const float* hidden) {
  const int64_t d = model_.config.hidden_size, vocab = model_.config.vocab_size;
  std::vector<Sequence*> block;
  std::vector<int64_t> firsts;  // rows of the block
  for (size_t next = 0; next < running_.size();) {
    block.clear();
    firsts.assign(1, 0);
    for (; next < running_.size(); ++next) {
      Sequence* s = running_[next].get();
      if (!s->search) continue;
      if (firsts.back() + s->head_rows() > head_rows_) break;
      block.push_back(s);
      const int64_t first = firsts.back(), rows = s->head_rows();
      std::copy_n(hidden + (static_cast<int64_t>(s->last_token) - rows) * d, rows * d, inputs_.floats() + first * d);
      firsts.push_back(first + rows);
    }
    // Neighbours that the same number of logits decides.
    for (size_t begin = 0, end; begin < block.size(); begin = end) {
      const int64_t deciding = block[begin]->deciding;
      for (end = begin + 1; end < block.size() && block[end]->deciding == deciding;) ++end;
      const int64_t first = firsts[begin], rows = firsts[end] - first;
      const float* x = inputs_.floats() + first * d;
      float* y = logits_.floats() + first * vocab;
      if (deciding)
        model_.quick_head->logits(compute_, x, rows, deciding, y);
      else
        compute_.linear(x, rows, model_.weights.head.view, y);
    }
    advance_searches(block, firsts);
  }
}

// Sequence i of the block has the rows of logits from firsts[i] to firsts[i + 1].
void Decoding::advance_searches(const std::vector<Sequence*>& block, const std::vector<int64_t>& firsts) {
  const int64_t vocab = model_.config.vocab_size;
  const auto logits = [&](int64_t row) { return logits_.floats() + row * vocab; };
  // Row by row: one sequence may have all of them, as beams.
  std::vector<search::Normalizer> normalizers(static_cast<size_t>(firsts.back()));
  std::vector<std::exception_ptr> errors(normalizers.size());
  compute_.parallel(firsts.back(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) try {
        const int64_t first = *(std::upper_bound(firsts.begin(), firsts.end(), row) - 1);
        normalizers[static_cast<size_t>(row)] = search::normalizer(logits(row), vocab, row - first);
      } catch (...) {
        errors[static_cast<size_t>(row)] = std::current_exception();
      }
  });
  compute_.parallel(static_cast<int64_t>(block.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) try {
        for (int64_t row = firsts[i]; row < firsts[i + 1]; ++row)
          if (const std::exception_ptr& error = errors[static_cast<size_t>(row)]) std::rethrow_exception(error);
        block[i]->search->advance(logits(firsts[i]), vocab, &normalizers[static_cast<size_t>(firsts[i])]);
      } catch (...) {
        block[i]->error = std::current_exception();
      }
  });
}

// Every token but the last of its sequence predicts the one after it.
void Decoding::run_scores(const float* hidden) {
  const int64_t d = model_.config.hidden_size, vocab = model_.config.vocab_size;
  struct Target {
    Sequence* sequence;
    size_t index;
    int32_t token;
    std::exception_ptr error;
  };
  std::vector<Target> targets;
  const auto run = [&] {
    const auto count = static_cast<int64_t>(targets.size());
    compute_.linear(inputs_.floats(), count, model_.weights.head.view, logits_.floats());
    compute_.parallel(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        Target& t = targets[static_cast<size_t>(i)];
        const float* row = logits_.floats() + i * vocab;
        try {
          t.sequence->scores[t.index] = search::normalizer(row, vocab, 0).log_probability(row[t.token]);
        } catch (...) {
          t.error = std::current_exception();
        }
      }
    });
    for (const Target& t : targets)
      if (t.error) t.sequence->error = t.error;
    targets.clear();
  };
  for (const SequencePtr& s : running_) {
    if (s->search || s->logits) continue;
    for (size_t i = 0; i + 1 < s->ids.size(); ++i) {
      std::copy_n(hidden + static_cast<int64_t>(s->first_token + i) * d, d,
                  inputs_.floats() + static_cast<int64_t>(targets.size()) * d);
      targets.push_back({s.get(), i, s->ids[i + 1], nullptr});
      if (static_cast<int64_t>(targets.size()) == head_rows_) run();
    }
  }
  if (!targets.empty()) run();
}

void Decoding::run_logits(const float* hidden) {
  const int64_t d = model_.config.hidden_size, vocab = model_.config.vocab_size;
  for (const SequencePtr& s : running_)
    if (s->logits)
      compute_.linear(hidden + static_cast<int64_t>(s->first_token) * d, size_of(s->ids), model_.weights.head.view,
                      s->logits->floats() + s->first_row * vocab);
}

void Decoding::finish_step() {
  size_t kept = 0;
  for (SequencePtr& s : running_) {
    Event& event = events_.emplace_back();
    event.handle = s->handle;
    try {
      if (!s->error) find_outcome(*s, event);
    } catch (...) {  // memory
      s->error = std::current_exception();
    }
    if (s->error) event = {s->handle, -1, true, {}, {}, s->error};
    if (event.done) {
      retire(*s);
      continue;
    }
    s->fresh = false;
    if (&running_[kept] != &s) running_[kept] = std::move(s);
    ++kept;
  }
  running_.resize(kept);
  if (empty()) let_go();
}

// What a sequence has come to in this step; the rows of the next, if it goes on.
void Decoding::find_outcome(Sequence& s, Event& event) {
  event.done = !s.search || s.search->done();
  if (!event.done) {
    if (s.width == 1) event.token = s.search->tokens()[0];
    return fork_rows(s);
  }
  event.scores = std::move(s.scores);
  if (s.search) event.results = std::move(s.search->results()[0]);
  if (s.search && s.width == 1) event.token = event.results[0].tokens.back();
}

// Row r goes on from row parents()[r] of this step.
void Decoding::fork_rows(Sequence& s) {
  const std::vector<int32_t>& parents = s.search->parents();
  if (parents.size() == 1 && s.rows.size() == 1) return;
  std::vector<std::vector<int32_t>> next;
  for (int32_t parent : parents) {
    std::vector<int32_t>& slots = next.emplace_back();
    const std::vector<int32_t>& past = s.rows[static_cast<size_t>(parent)];
    slots.reserve(past.capacity());
    slots = past;
  }
  for (const std::vector<int32_t>& row : next) slots_.share(row);
  for (const std::vector<int32_t>& row : s.rows) slots_.drop(row);
  s.rows = std::move(next);
}

void Decoding::retire(Sequence& s) {
  for (const std::vector<int32_t>& row : s.rows) slots_.drop(row);
  reserved_slots_ -= s.reserved_slots;
  reserved_rows_ -= s.width;
}

// Nothing is left: memory that many rows took goes back.
void Decoding::let_go() {
  slots_.clear();
  if (bytes() <= kIdleBytes) return;
  text_.clear();
  inputs_ = Buffer();
  logits_ = Buffer();
  max_slots_ = head_rows_ = 0;
}

}  // namespace gitfast::cpu
