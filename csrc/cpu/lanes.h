// The lanes of an engine: running batches side by side, each with a crew of threads and scratch of its own, over one
// copy of the weights. A call goes to the lane with the least work; one of many images or rows is divided.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "fork.h"
#include "running_batch.h"

namespace gitfast::cpu {

class Lanes {
 public:
  // One lane for each pool. The models are those of an engine, which must outlive this; their pools are not used.
  Lanes(const TextModel& text, const ImageModel& images, const std::vector<ThreadPool*>& pools,
        RunningBatch::Stats& stats);

  // As those of RunningBatch, and as safe to call from any thread. A call with a callback stays in one lane.
  std::vector<std::vector<search::Result>> generate(const TextRows& rows, const search::RulesPtr& rules,
                                                    const OnTokens& on_tokens, const Control& control);
  std::vector<std::vector<float>> score(const TextRows& rows, const Control& control);
  Buffer logits(const TextRows& rows, const Control& control);
  std::vector<std::shared_ptr<Prefix>> encode(const PixelBatch& pixels, const Control& control);
  Buffer features(const PixelBatch& pixels, const Control& control);

 private:
  // Some of a call's items, in one lane.
  struct Part {
    size_t lane;
    int64_t first, count;
    int64_t work;  // in tokens, as loads
  };
  using RunPart = std::function<void(RunningBatch&, const Part&, const Control&)>;
  struct Helpers;

  void run(const std::vector<int64_t>& costs, bool whole, const Control& control, const RunPart& run_part);
  std::vector<Part> admit(const std::vector<int64_t>& costs, bool whole);
  void run_part(const Part& part, const Control& control, const RunPart& run_part);
  void wait(Helpers& helpers, const Control& control) const;
  void check_process() const;

  const int64_t vision_width_;
  const VisionConfig& vision_;
  const int forks_ = fork_count();
  std::vector<std::unique_ptr<RunningBatch>> batches_;
  std::mutex mutex_;
  std::vector<int64_t> loads_;  // per lane: tokens admitted and not done
};

}  // namespace gitfast::cpu
