// A fiber: a function with a stack of its own that runs until it yields. Emulated CUDA threads are fibers.
//
// AddressSanitizer is told of every change of stacks, ThreadSanitizer takes each fiber for a thread that nothing orders
// except what synchronizes() says: so it finds races between CUDA threads, though one OS thread runs them in turn.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GITFAST_SANITIZED 1
#endif

// Leaves the emulation itself out of race detection: only the emulated kernels are watched.
#define GITFAST_UNCHECKED [[gnu::no_sanitize("thread")]]

namespace gitfast::emulation {

// A place where threads meet: all that came before release() comes before what follows acquire().
struct Meeting {
  void release() { release(this); }
  void acquire() { acquire(this); }
  // At any address.
#ifdef __SANITIZE_THREAD__
  static void release(void* address) { __tsan_release(address); }
  static void acquire(void* address) { __tsan_acquire(address); }
#else
  static void release(void*) {}
  static void acquire(void*) {}
#endif
  char address = 0;
};

// The stack of a fiber. Below it lies a page that cannot be touched, so that running out of stack is seen.
//
// Some are kept for fibers to come: a launch needs one per thread, and new memory costs more than most threads do.
class StackMemory {
 public:
  static constexpr size_t kStack = 128 * 1024;

  StackMemory() {
    if (!kept.stacks.empty()) {
      memory_ = kept.stacks.back();
      kept.stacks.pop_back();
      return;
    }
    memory_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, kGuard, PROT_NONE);
  }
  ~StackMemory() {
    if (kReuse && kept.stacks.size() < kMostKept) {
      kept.stacks.push_back(memory_);
    } else {
      munmap(memory_, kBytes);
    }
  }
  StackMemory(const StackMemory&) = delete;
  StackMemory& operator=(const StackMemory&) = delete;
  void* stack() const { return static_cast<char*>(memory_) + kGuard; }

 private:
#ifdef GITFAST_SANITIZED
  static constexpr bool kReuse = false;  // the memory of a thread would order it after the one before
#else
  static constexpr bool kReuse = true;
#endif
  static constexpr size_t kGuard = 4096, kBytes = kGuard + kStack, kMostKept = 2048;

  struct Kept {
    std::vector<void*> stacks;
    ~Kept() {
      for (void* memory : stacks) munmap(memory, kBytes);
    }
  };
  static inline thread_local Kept kept;

  void* memory_;
};

class Fiber {
 public:
  Fiber() = default;
  ~Fiber() { forget(); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls `body` from its beginning; what an earlier body left on the stack is dropped.
  void start(std::function<void()> body) {
    body_ = std::move(body);
    if (waits_for_body_) return;
    forget();
#ifdef __SANITIZE_THREAD__
    tsan_ = __tsan_create_fiber(0);
#endif
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack();
    inside_.uc_stack.ss_size = kStack;
    inside_.uc_link = nullptr;
    const auto address = reinterpret_cast<uintptr_t>(this);  // makecontext passes ints
    makecontext(&inside_, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
                static_cast<unsigned>(address >> 32));
#ifndef GITFAST_SANITIZED
    entered_ = false;
#endif
    begin_.release();
  }

#ifndef GITFAST_SANITIZED
  // Runs until the body yields or returns. Every change of stacks by swapcontext would be two system calls.
  [[gnu::noinline]] void resume() {
    if (_setjmp(outside_)) return;
    if (entered_) _longjmp(inside_now_, 1);
    entered_ = true;
    setcontext(&inside_);
  }
#else
  GITFAST_UNCHECKED void resume() {
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, stack(), kStack);
#endif
#ifdef __SANITIZE_THREAD__
    tsan_outside_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, kNoOrder);
#endif
    swapcontext(&outside_, &inside_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }
#endif

  // Called by the body.
  GITFAST_UNCHECKED void yield() { leave(false); }

  // After the body has returned: what it did comes before what follows.
  void join() { end_.acquire(); }

 private:
  static constexpr size_t kStack = StackMemory::kStack;
  static constexpr unsigned kNoOrder = 1;

  void* stack() const { return memory_.stack(); }

  void forget() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack(), kStack);
#endif
#ifdef __SANITIZE_THREAD__
    if (tsan_) __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
#endif
  }

  GITFAST_UNCHECKED static void enter(unsigned low, unsigned high) {
    Fiber* fiber = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &fiber->outside_stack_, &fiber->outside_size_);
#endif
    do {
      fiber->begin_.acquire();
      fiber->body_();
      fiber->end_.release();
#ifndef GITFAST_SANITIZED
      fiber->waits_for_body_ = true;
#endif
      fiber->leave(true);
      fiber->waits_for_body_ = false;
    } while (true);
  }

#ifndef GITFAST_SANITIZED
  [[gnu::noinline]] void leave(bool) {
    if (!_setjmp(inside_now_)) _longjmp(outside_, 1);
  }
#else
  GITFAST_UNCHECKED void leave([[maybe_unused]] bool for_good) {
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, outside_stack_, outside_size_);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(tsan_outside_, kNoOrder);
#endif
    swapcontext(&inside_, &outside_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_size_);
#endif
  }
  ucontext_t outside_;
#endif

  StackMemory memory_;
  std::function<void()> body_;
  ucontext_t inside_;
#ifndef GITFAST_SANITIZED
  jmp_buf outside_, inside_now_;
  bool entered_ = false;
#endif
  bool waits_for_body_ = false;  // the body has returned, and the stack can go on with another
  Meeting begin_, end_;
#ifdef __SANITIZE_ADDRESS__
  const void* outside_stack_ = nullptr;
  size_t outside_size_ = 0;
#endif
#ifdef __SANITIZE_THREAD__
  void* tsan_ = nullptr;
  void* tsan_outside_ = nullptr;
#endif
};

}  // namespace gitfast::emulation
