// Ends work from another thread, or at a time. Read between steps and between layers, without a lock.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>

namespace gitfast::cpu {

using Clock = std::chrono::steady_clock;

struct Cancelled : std::runtime_error {
  Cancelled() : runtime_error("the call was cancelled") {}
};

struct DeadlinePassed : std::runtime_error {
  DeadlinePassed() : runtime_error("the deadline passed before the call was done") {}
};

class CancelFlag {
 public:
  explicit CancelFlag(std::optional<Clock::time_point> deadline = {}) : deadline_(deadline) {}

  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  bool late() const { return deadline_ && Clock::now() >= *deadline_; }
  std::optional<Clock::time_point> deadline() const { return deadline_; }

  // Throws Cancelled or DeadlinePassed.
  void check() const {
    if (cancelled()) throw Cancelled();
    if (late()) throw DeadlinePassed();
  }

 private:
  std::atomic<bool> cancelled_{false};
  const std::optional<Clock::time_point> deadline_;
};

using CancelFlagPtr = std::shared_ptr<const CancelFlag>;  // null: nothing ends the call early

}  // namespace gitfast::cpu
