// The running batch: sequences that share every step. They join and leave between steps, and each has its own prompt,
// prefix, search and random numbers. A sequence's results do not depend on the others, to the bit.
//
// Slots hold the keys and values of tokens; beams that share a past share its slots, which are counted and given back.
// All that a sequence may come to need is reserved when it is added, so that a step does not fail for want of room.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <vector>

#include "compute.h"
#include "decoder.h"
#include "model.h"
#include "prefix.h"
#include "search/search.h"
#include "two_stage_head.h"

namespace gitfast::cpu {

using PrefixPtr = std::shared_ptr<const Prefix>;

// The parts of an engine that decoding needs; the engine must outlive it.
struct TextModel {
  const ModelConfig& config;
  const DecoderWeights& weights;
  const Kernels& kernels;
  ThreadPool& pool;
  const TwoStageHead* quick_head;  // or null
};

// Receives the logits of all tokens of some sequences, (tokens, V).
using LogitsPtr = std::shared_ptr<Buffer>;

// One thread at a time.
class Decoding {
 public:
  using Handle = int64_t;

  // The outcome of a step for one sequence.
  struct Event {
    Handle handle = 0;
    int32_t token = -1;  // the new one; -1 where none is final yet (beams, several samples) or wanted (scores)
    bool done = false;   // the handle is no longer valid
    std::vector<search::Result> results;  // when done: the sequences found, best first
    std::vector<float> scores;            // when done: log-probabilities of a scored sequence
    std::exception_ptr error;             // when done: why the sequence failed
  };

  struct Counts {
    int64_t prefill_tokens = 0;
    int64_t decode_steps = 0;  // steps in which a sequence went on
    int64_t decode_rows = 0;   // rows that went on in them
  };

  explicit Decoding(const TextModel& model);
  ~Decoding();

  // Prompts, sequences and prefixes must suit the model. Throw std::bad_alloc and add nothing where memory does not
  // suffice.
  Handle generate(PrefixPtr prefix, search::Tokens prompt, const search::RulesPtr& rules);
  // Log-probability of every token but the first, given those before it.
  Handle score(PrefixPtr prefix, search::Tokens sequence);
  // Logits at every token, written to the rows of `out` from `first_row` on.
  Handle logits(PrefixPtr prefix, search::Tokens sequence, LogitsPtr out, int64_t first_row);

  // Ends a sequence without an event; false where there is none.
  bool cancel(Handle handle);
  // Ends a generation as it stands, with FinishReason::length; its last event. Null: there is none.
  std::unique_ptr<Event> stop(Handle handle);

  // Runs one step of every sequence: the prompt of one that is new (of as many as are worth one step), one more token
  // of the others. Its events, until the next call. Does not throw: what goes wrong ends the sequences that it
  // concerns, with their errors.
  std::vector<Event>& step();

  bool empty() const { return waiting_.empty() && running_.empty(); }
  int64_t sequences() const { return static_cast<int64_t>(waiting_.size() + running_.size()); }
  Counts counts() const { return counts_; }
  size_t bytes() const { return text_.bytes() + inputs_.bytes() + logits_.bytes(); }

 private:
  // Numbers of slots, each in use by some rows; the lowest free one goes first, so that few have ever been used.
  class Slots {
   public:
    int32_t take();  // may throw std::bad_alloc; nothing else does
    void share(const std::vector<int32_t>& slots);
    void drop(const std::vector<int32_t>& slots);
    int64_t highest() const { return static_cast<int64_t>(uses_.size()); }
    void clear();

   private:
    std::vector<int32_t> free_;  // a heap, the lowest in front
    std::vector<int32_t> uses_;  // per slot
  };
  struct Sequence;
  using SequencePtr = std::unique_ptr<Sequence>;

  Handle add(SequencePtr sequence);
  void reserve(const Sequence& sequence);
  void admit();
  void begin_tokens();
  void run_heads(const float* hidden);
  void run_generations(const float* hidden);
  void advance_searches(const std::vector<Sequence*>& block, const std::vector<int64_t>& firsts);
  void run_scores(const float* hidden);
  void run_logits(const float* hidden);
  void finish_step();
  void find_outcome(Sequence& sequence, Event& event);
  void fork_rows(Sequence& sequence);
  void retire(Sequence& sequence);
  void let_go();

  const TextModel model_;
  TextState text_;
  Compute compute_;
  Slots slots_;
  std::deque<SequencePtr> waiting_;   // in the order they came
  std::vector<SequencePtr> running_;  // neighbours share prefixes where they can; room for those that wait, too
  std::vector<Event> events_;         // of a step; room for one of every sequence
  Handle next_handle_ = 1;
  int64_t reserved_slots_ = 0, reserved_rows_ = 0;
  int64_t max_slots_ = 0;   // there is room for
  Buffer inputs_, logits_;  // (rows of logits held at once, D | V)
  int64_t head_rows_ = 0;
  std::vector<TextToken> tokens_;  // of this step
  Counts counts_;
};

}  // namespace gitfast::cpu
