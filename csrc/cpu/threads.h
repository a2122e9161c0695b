// A small pool of worker threads that spin briefly, then park. Survives fork: the child makes its own threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <new>
#include <string>
#include <utility>

#include "fork.h"

namespace gitfast::cpu {

// The system has no room for another thread: becomes MemoryError in Python.
class NoThread : public std::bad_alloc {
 public:
  explicit NoThread(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // including the calling thread; >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs fn(begin, end, thread) over a partition of [0, n) into at most `pieces` parts for each of num_threads(),
  // boundaries multiples of `grain`; returns when all are done. With one piece a thread has a part of its own, and
  // those whose thread has not woken when the caller is through with its own are run by the caller, so that a busy
  // machine costs parallelism only; with more, threads take one after another, and one that is slowed down takes fewer.
  // `thread` is who runs, never two at once. One caller at a time; concurrent callers queue. Called from inside fn it
  // runs on that thread alone. The first exception is rethrown here, after every part has ended. Throws NoThread where
  // threads cannot be started.
  void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t, int)>& fn, int pieces = 1);

 private:
  class Crew;

  const int num_threads_;
  PerProcess<Crew> crew_;
};

constexpr int kMaxThreads = 1024;  // of a pool, and of all lanes of an engine

// `requested` if positive, else GITFAST_NUM_THREADS, else usable_cpus().
// Throws Error naming the argument or the variable.
int choose_num_threads(int requested);

// Lanes of an engine, and the threads of each.
struct Crews {
  int lanes, threads;
};

// Zeros are to be chosen: both from choose_num_threads, so many threads in all (`default_lanes`); the threads of given
// lanes likewise; and one lane for given threads. Throws Error naming the argument or the variable.
Crews choose_crews(int lanes, int threads);

// The number of lanes that `threads` make if nobody says.
int default_lanes(int threads);

// CPUs this process may run on, cgroup quota included.
int usable_cpus();

// CPUs the cgroups of a process grant it, rounded up; a very large number without a quota. `membership` is
// /proc/self/cgroup, `root` the folder cgroups are mounted on.
int cgroup_cpus(const std::string& membership = "/proc/self/cgroup", const std::string& root = "/sys/fs/cgroup");

}  // namespace gitfast::cpu
