// A fiber: a function with a stack of its own that runs until it yields. Emulated CUDA threads are fibers.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <functional>
#include <new>

namespace gitfast::emulation {

class Fiber {
 public:
  Fiber() {
    // Below the stack lies a page that cannot be touched, so that running out of stack is seen.
    memory_ =
        mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, kGuard, PROT_NONE);
  }
  ~Fiber() { munmap(memory_, kGuard + kStack); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls `body` from its beginning; what an earlier body left on the stack is dropped.
  void start(std::function<void()> body) {
    body_ = std::move(body);
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = static_cast<char*>(memory_) + kGuard;
    inside_.uc_stack.ss_size = kStack;
    inside_.uc_link = &outside_;
    const auto address = reinterpret_cast<uintptr_t>(this);  // makecontext passes ints
    makecontext(&inside_, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
                static_cast<unsigned>(address >> 32));
  }
  // Runs until the body yields or returns.
  void resume() { swapcontext(&outside_, &inside_); }
  // Called by the body.
  void yield() { swapcontext(&inside_, &outside_); }

 private:
  static constexpr size_t kGuard = 4096, kStack = 64 * 1024;

  static void enter(unsigned low, unsigned high) {
    reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low)->body_();
  }

  void* memory_;
  std::function<void()> body_;
  ucontext_t inside_, outside_;
};

}  // namespace gitfast::emulation
