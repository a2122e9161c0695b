// A small pool of worker threads that spin briefly, then park. Survives fork: the child makes its own threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace gitfast::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // including the calling thread; >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Runs fn(begin, end, thread) over a static partition of [0, n) into at most num_threads() parts, boundaries
  // multiples of `grain`; returns when all are done. One caller at a time; concurrent callers queue. The first
  // exception is rethrown here.
  void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// `requested` if positive, else GITFAST_NUM_THREADS, else the CPUs this process may run on (cgroup quota included).
int choose_num_threads(int requested);

}  // namespace gitfast::cpu
