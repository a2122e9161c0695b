#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tensor.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gitfast::cpu {
namespace {

constexpr int kSpins = 4000;  // about 20 us on a 3 GHz core: longer than the gap between two regions of a decode step

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

// The threads and everything they touch. A forked child has none of the threads, and locks in any state: it drops
// the old crew without touching it and starts another.
struct Crew {
  explicit Crew(int workers) : owner(getpid()) {
    for (int i = 0; i < workers; ++i) threads.emplace_back([this, i] { work(i + 1); });
  }

  ~Crew() {
    {
      std::lock_guard<std::mutex> lock(park);
      stopping.store(true);
    }
    wake.notify_all();
    for (std::thread& t : threads) t.join();
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation.load(std::memory_order_acquire) == seen && !stopping.load(); ++i)
        relax();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(park);
        wake.wait(lock, [&] { return generation.load() != seen || stopping.load(); });
      }
      if (stopping.load()) return;
      seen = generation.load(std::memory_order_acquire);
      run_part(thread);
      pending.fetch_sub(1, std::memory_order_release);
    }
  }

  void run(int64_t total, int64_t unit, const std::function<void(int64_t, int64_t, int)>& body) {
    n = total;
    grain = unit;
    fn = &body;
    error = nullptr;
    pending.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(park);  // so that no thread parks between its check and its wait
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    run_part(0);
    for (int spins = 0; pending.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < kSpins)
        relax();
      else
        std::this_thread::yield();
    }
    if (error) std::rethrow_exception(error);
  }

  void run_part(int thread) {
    const int parts = static_cast<int>(threads.size()) + 1;
    const int64_t units = (n + grain - 1) / grain;
    const int64_t begin = std::min(n, units * thread / parts * grain);
    const int64_t end = std::min(n, units * (thread + 1) / parts * grain);
    if (begin >= end) return;
    try {
      (*fn)(begin, end, thread);
    } catch (...) {
      std::lock_guard<std::mutex> lock(park);
      if (!error) error = std::current_exception();
    }
  }

  const pid_t owner;
  std::vector<std::thread> threads;
  std::mutex park;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> pending{0};
  std::atomic<bool> stopping{false};

  // The region being run: written by run() before `generation` moves, read by the threads after.
  int64_t n = 0;
  int64_t grain = 1;
  const std::function<void(int64_t, int64_t, int)>* fn = nullptr;
  std::exception_ptr error;
};

struct ThreadPool::Impl {
  explicit Impl(int n) : num_threads(n) {}

  Crew& crew_of_this_process() {
    if (!crew || crew->owner != getpid()) {
      (void)crew.release();  // in a forked child: its threads do not exist here, nothing of it may be touched
      crew = std::make_unique<Crew>(num_threads - 1);
    }
    return *crew;
  }

  const int num_threads;
  std::unique_ptr<Crew> crew;
  // One caller at a time. By pointer, so that a forked child can leave behind one that is held for ever.
  std::unique_ptr<std::mutex> callers = std::make_unique<std::mutex>();
  pid_t owner = getpid();
};

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads < 1) throw Error("num_threads: expected at least 1, got " + std::to_string(num_threads));
  impl_ = std::make_unique<Impl>(num_threads);
}

ThreadPool::~ThreadPool() {
  if (impl_ && impl_->crew && impl_->crew->owner != getpid()) (void)impl_->crew.release();
}

int ThreadPool::num_threads() const { return impl_->num_threads; }

void ThreadPool::parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& fn) {
  if (n <= 0) return;
  if (impl_->num_threads == 1 || n <= grain) {
    fn(0, n, 0);
    return;
  }
  if (impl_->owner != getpid()) {  // first call in a forked child, which has one thread only: no race
    (void)impl_->callers.release();
    impl_->callers = std::make_unique<std::mutex>();
    impl_->owner = getpid();
  }
  std::lock_guard<std::mutex> lock(*impl_->callers);
  impl_->crew_of_this_process().run(n, grain, fn);
}

namespace {

// CPUs the cgroup grants this process, rounded up; a large number where there is no quota.
int cgroup_cpus() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 1 << 20;
  const double cpus = std::atof(quota.c_str()) / period;
  return cpus > 0 ? std::max(1, static_cast<int>(cpus + 0.99)) : 1 << 20;
}

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int affinity = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::max(1, std::min(affinity, cgroup_cpus()));
}

}  // namespace

int choose_num_threads(int requested) {
  constexpr int kMax = 1024;
  if (requested < 0 || requested > kMax)
    throw Error("num_threads: expected 1 to " + std::to_string(kMax) + " (0 chooses), got " +
                std::to_string(requested));
  if (requested > 0) return requested;
  const char* variable = std::getenv("GITFAST_NUM_THREADS");
  if (!variable || !*variable) return usable_cpus();
  char* end = nullptr;
  const long value = std::strtol(variable, &end, 10);
  if (*end || value < 1 || value > kMax)
    throw Error("GITFAST_NUM_THREADS: expected 1 to " + std::to_string(kMax) + ", got '" + variable + "'");
  return static_cast<int>(value);
}

}  // namespace gitfast::cpu
