// Work that concurrent calls of one engine share: a running batch of text, and the encoding of images. There is no
// thread but the callers': one of them leads, running steps and slices for all, and hands the lead on when its own work
// is done or its callback is due.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cancel.h"
#include "decoding.h"
#include "encoding.h"
#include "fork.h"
#include "policy.h"

namespace gitfast::cpu {

using TokenLists = std::vector<std::vector<int32_t>>;

// The ways to end a call early.
struct Control {
  CancelFlagPtr cancel;        // looked at between steps and layers; the call throws Cancelled or DeadlinePassed
  std::function<void()> poll;  // called now and then on the calling thread; what it throws ends the call. May be null
  CancelFlagPtr abandoned{};   // as `cancel`, where the call is a part of one that has failed
};

constexpr auto kPollInterval = std::chrono::milliseconds(50);

// The new tokens of a row, in order, on the calling thread; joined they are the tokens of its best result. Empty where
// none is final yet: beams and several samples are told once per step that it was done, and their tokens at the end.
// Returning false ends the row as it stands.
using OnTokens = std::function<bool(int32_t row, const std::vector<int32_t>& tokens)>;

// Rows of text, or some of a call's.
struct TextRows {
  const PrefixPtr* prefixes;
  const std::vector<int32_t>* ids;
  size_t count;
  size_t first = 0;  // number of the first of them in the call, for messages

  TextRows part(int64_t begin, int64_t rows) const {
    return {prefixes + begin, ids + begin, static_cast<size_t>(rows), first + static_cast<size_t>(begin)};
  }
};

class RunningBatch {
 public:
  struct Stats {
    std::atomic<int64_t> encoded_images{0};  // images and clips
    std::atomic<int64_t> prefill_tokens{0};
    std::atomic<int64_t> decode_steps{0};  // of all calls together
    std::atomic<int64_t> decode_rows{0};   // of those steps
    std::atomic<int64_t> step_ns{0}, encode_ns{0};
  };

  RunningBatch(const TextModel& text, const ImageModel& images, Stats& stats);

  // Calls return with their results, or throw what ends them. Arguments must suit the model.
  std::vector<std::vector<search::Result>> generate(const TextRows& rows, const search::RulesPtr& rules,
                                                    const OnTokens& on_tokens, const Control& control);
  std::vector<std::vector<float>> score(const TextRows& rows, const Control& control);
  Buffer logits(const TextRows& rows, const Control& control);
  std::vector<std::shared_ptr<Prefix>> encode(const PixelBatch& pixels, const Control& control);
  // Writes features (images, frames * N, Dv) to `out`.
  void features(const PixelBatch& pixels, float* out, const Control& control);

 private:
  struct Call;
  struct TextCall;
  struct ImageCall;
  using Lock = std::unique_lock<std::mutex>;
  using Add = std::function<Decoding::Handle(size_t row)>;

  void run(Call& call);
  void wait(Call& call, Lock& lock);
  void poll(Call& call, Lock& lock);
  void leave(Call& call);
  void withdraw(Call& call);
  void end(Call& call, std::exception_ptr error);
  void wake(Call& call);
  void hand_on();
  bool has_work() const;

  void lead(Lock& lock);
  void end_cancelled();
  void apply_changes();
  void add_arrivals();
  void let_go();
  Work work(Clock::time_point now) const;
  void run_step(Lock& lock);
  void take(Decoding::Event& event);
  void give(TextCall& call, size_t row, Decoding::Event& event);
  void run_slice(Lock& lock);
  void begin_encoding();
  void finish_encoding();
  int64_t image_tokens(const PixelBatch& pixels) const;

  const TextModel text_model_;
  const ImageModel image_model_;
  Stats& stats_;
  const int forks_ = fork_count();

  std::mutex mutex_;
  bool leading_ = false;      // a thread runs a step or a slice, with the mutex free
  std::vector<Call*> calls_;  // all that are at work
  std::deque<TextCall*> text_arrivals_;
  std::deque<ImageCall*> image_calls_;                // with images that no encoding has begun
  std::vector<Decoding::Handle> departures_, stops_;  // to be applied before the next step; room for all to depart
  std::unordered_map<Decoding::Handle, std::pair<TextCall*, size_t>> owners_;

  // Touched by who leads.
  Decoding decoding_;
  std::unique_ptr<Encoding> encoding_;
  std::vector<std::pair<ImageCall*, int64_t>> encoding_for_;  // per image its call, or null, and its place there
  Clock::time_point stepped_;
  int64_t slices_ = 0;    // since the last step
  bool begins_ = false;   // rows were added since then
  double step_cost_ = 0;  // seconds, recent steps counting most
  double slice_token_cost_ = 0;
};

}  // namespace gitfast::cpu
