#include "platform.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <new>
#include <thread>

namespace gitfast::cpu {

#if defined(_WIN32)

void* allocate(size_t bytes) {
  void* memory = _aligned_malloc(bytes, 64);
  if (!memory) throw std::bad_alloc();
  return memory;
}

void release(void* memory) { _aligned_free(memory); }

int affinity_cpus() {
  DWORD_PTR ours = 0, all = 0;
  if (!GetProcessAffinityMask(GetCurrentProcess(), &ours, &all)) ours = 0;
  int cpus = 0;  // of this process's group of 64
  for (; ours; ours &= ours - 1) ++cpus;
  return std::max(1, cpus);
}

int current_cpu() { return -1; }
void leave_cpu(int) {}
int after_fork_in_child(void (*)()) { return 0; }

BlockedSignals::BlockedSignals() {}
BlockedSignals::~BlockedSignals() {}

#else

void* allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t align = bytes >= kHugePage ? kHugePage : 64;
  void* memory = std::aligned_alloc(align, (bytes + align - 1) / align * align);
  if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (align == kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // whole ones, no waste
#endif
  return memory;
}

void release(void* memory) { std::free(memory); }

int affinity_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

void leave_cpu([[maybe_unused]] int cpu) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(cpu, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

int after_fork_in_child(void (*call)()) { return pthread_atfork(nullptr, nullptr, call); }

BlockedSignals::BlockedSignals() {
  sigset_t set;
  sigfillset(&set);
  for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&set, fault);
  pthread_sigmask(SIG_SETMASK, &set, &before_);
}

BlockedSignals::~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

#endif

}  // namespace gitfast::cpu
