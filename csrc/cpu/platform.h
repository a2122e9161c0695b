// What the standard library does not offer and operating systems do: this and platform.cpp know which one it is, and
// isa.cpp asks it for its processor's features.
#pragma once

#if !defined(_WIN32)
#include <signal.h>
#endif

#include <cstddef>

namespace gitfast::cpu {

// `bytes` > 0 of memory at a multiple of 64, in huge pages where it is large and they can be had; whoever takes it
// gives it to `release`. Throws std::bad_alloc.
void* allocate(size_t bytes);
void release(void* memory);

// CPUs that this process may run on by its affinity; at least 1.
int affinity_cpus();

// The CPU that the calling thread runs on, or -1 where nobody says.
int current_cpu();

// Moves the calling thread to another CPU that it may run on, if there is one. The scheduler likes to wake a thread
// on the CPU of the one that wakes it; beside a busy neighbour they then stay there and take turns.
void leave_cpu(int cpu);

// Has `call` called in every forked child. Returns 0.
int after_fork_in_child(void (*call)());

// Keeps signals from the threads that are started while it lives, but for those that report their own faults: signals
// are for the threads of the application.
class BlockedSignals {
 public:
  BlockedSignals();
  ~BlockedSignals();
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
#if !defined(_WIN32)
  sigset_t before_;
#endif
};

}  // namespace gitfast::cpu
