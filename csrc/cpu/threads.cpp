// The pool of threads: parts of a loop, spinning, parking, and forks.
#include "threads.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "platform.h"
#include "tensor.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gitfast::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than waking a thread costs (20 to 50 us), and than the serial stretches of a decode step.
constexpr auto kSpinTime = std::chrono::microseconds(100);

// Threads of all pools that are working or spinning. While they are more than the CPUs, as when several engines run
// at once, a spinning thread only keeps another from its work: then nobody spins.
std::atomic<int> awake{0};
std::atomic<int> cpus{1};  // read anew whenever a pool starts

bool may_spin() { return awake.load(std::memory_order_relaxed) <= cpus.load(std::memory_order_relaxed); }

struct Awake {
  Awake() { awake.fetch_add(1, std::memory_order_relaxed); }
  ~Awake() { awake.fetch_sub(1, std::memory_order_relaxed); }
};

std::atomic<int> forks{0};
void count_fork() {
  forks.fetch_add(1);
  awake.store(0);
}
[[maybe_unused]] const int kForkHandler = after_fork_in_child(count_fork);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A place to wait for a condition on atomics: threads spin first, then sleep. Whoever makes the condition true calls
// `notify` afterwards.
class Parking {
 public:
  // The calling thread counts as awake.
  template <class Condition>
  void wait(const Condition& holds) {
    if (spin(holds)) return;
    awake.fetch_sub(1, std::memory_order_relaxed);
    sleepers_.fetch_add(1);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, holds);
    }
    sleepers_.fetch_sub(1);
    awake.fetch_add(1, std::memory_order_relaxed);
  }

  void notify() {
    if (sleepers_.load() == 0) return;  // a sleeper registers before its last look at the condition: none is missed
    const std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }

 private:
  template <class Condition>
  static bool spin(const Condition& holds) {
    const auto end = Clock::now() + kSpinTime;
    do {
      for (int i = 0; i < 16; ++i) {
        if (holds()) return true;
        relax();
      }
    } while (may_spin() && Clock::now() < end);
    return false;
  }

  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

// One part of a job, offered to one worker. Whoever takes it first runs it.
class alignas(64) Offer {
 public:
  void make() { set(kOffered); }
  void close() { set(kClosed); }
  bool take() {
    int expected = kOffered;
    return state_.compare_exchange_strong(expected, kTaken);
  }
  void finish() { state_.store(kNone); }

  // For the worker: returns when there may be something to take; false when there never will be again.
  bool wait() {
    parking_.wait([this] { return state_.load() == kOffered || state_.load() == kClosed; });
    return state_.load() != kClosed;
  }

 private:
  enum State : int { kNone, kOffered, kTaken, kClosed };

  void set(State state) {
    state_.store(state);
    parking_.notify();
  }

  std::atomic<int> state_{kNone};
  Parking parking_;
};

}  // namespace

int fork_count() { return forks.load(); }

// The threads and everything they touch.
class ThreadPool::Crew {
 public:
  explicit Crew(int num_threads) : num_threads_(num_threads), offers_(num_threads) {}

  ~Crew() { stop(); }

  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& fn, int pieces) {
    if (working_for == this) return fn(0, n, working_as);
    const std::lock_guard<std::mutex> lock(callers_);
    const Awake caller;
    const int64_t units = (n + grain - 1) / grain;
    const auto parts = static_cast<int>(std::min<int64_t>(num_threads_, units));
    job_ = {&fn, n, grain, units, parts, std::min(units, int64_t{parts} * pieces)};
    next_.store(0);
    error_ = nullptr;
    if (job_.parts > 1) start();
    pending_.store(job_.parts - 1);
    caller_cpu_.store(current_cpu(), std::memory_order_relaxed);
    for (int part = 1; part < job_.parts; ++part) offers_[part].make();
    run_part(0, 0);
    for (int part = job_.parts - 1; part > 0; --part)  // a worker that has not woken by now would be waited for
      if (offers_[part].take()) finish_part(part, 0);
    if (pending_.load() > 0) done_.wait([this] { return pending_.load() == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  struct Job {
    const std::function<void(int64_t, int64_t, int)>* fn;
    int64_t n, grain, units;
    int parts;       // one for each thread that works
    int64_t pieces;  // of all of them
  };

  void start() {
    if (!threads_.empty()) return;
    cpus.store(usable_cpus());
    const BlockedSignals blocked;
    try {
      for (int i = 1; i < num_threads_; ++i) threads_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
      stop();
      throw NoThread("num_lanes, num_threads: the system has no room for so many threads (" + error.code().message() +
                     "); ask for fewer");
    } catch (...) {
      stop();
      throw;
    }
  }

  void stop() {
    for (size_t i = 1; i <= threads_.size(); ++i) offers_[i].close();
    for (std::thread& t : threads_) t.join();
    for (size_t i = 1; i <= threads_.size(); ++i) offers_[i].finish();
    threads_.clear();
  }

  void work(int thread) {
    const Awake worker;
    while (offers_[thread].wait()) {
      if (may_spin() && current_cpu() == caller_cpu_.load(std::memory_order_relaxed)) leave_cpu(current_cpu());
      if (offers_[thread].take()) finish_part(thread, thread);
    }
  }

  void finish_part(int part, int thread) {
    run_part(part, thread);
    offers_[part].finish();
    if (pending_.fetch_sub(1) == 1) done_.notify();
  }

  void run_part(int part, int thread) {
    if (job_.pieces == job_.parts) return run_piece(part, thread);
    int64_t piece;
    while ((piece = next_.fetch_add(1)) < job_.pieces) run_piece(piece, thread);
  }

  void run_piece(int64_t piece, int thread) {
    const int64_t begin = job_.units * piece / job_.pieces * job_.grain;
    const int64_t end = std::min(job_.n, job_.units * (piece + 1) / job_.pieces * job_.grain);
    const auto outer = std::make_pair(working_for, working_as);
    working_for = this;
    working_as = thread;
    try {
      (*job_.fn)(begin, end, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    std::tie(working_for, working_as) = outer;
  }

  static thread_local const Crew* working_for;
  static thread_local int working_as;

  const int num_threads_;
  std::mutex callers_;  // held by the one caller whose job runs
  std::vector<std::thread> threads_;
  std::vector<Offer> offers_;     // offers_[i] is for worker i; the caller's part 0 needs none
  Job job_ = {};                  // read by whoever has taken a part, which keeps the job from ending
  std::atomic<int64_t> next_{0};  // piece to be taken, where there are more than parts
  std::atomic<int> caller_cpu_{-1};
  std::atomic<int> pending_{0};  // parts not yet finished, but for the caller's own
  Parking done_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

thread_local const ThreadPool::Crew* ThreadPool::Crew::working_for = nullptr;
thread_local int ThreadPool::Crew::working_as = 0;

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  if (num_threads < 1) throw Error("num_threads: expected at least 1, got " + std::to_string(num_threads));
}

ThreadPool::~ThreadPool() = default;

void ThreadPool::parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& fn,
                              int pieces) {
  if (n > 0) crew_.get([this] { return std::make_unique<Crew>(num_threads_); }).run(n, grain, fn, pieces);
}

}  // namespace gitfast::cpu
