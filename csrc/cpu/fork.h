// Support for forked children: a child has no thread but its own, and finds the locks of its parent in any state.
#pragma once

#include <atomic>
#include <memory>

namespace gitfast::cpu {

// The number of forks between the first process and this one.
int fork_count();

// One T for each process, made when it is first asked for. A forked child leaves its parent's untouched, for good, for
// a thread that is no more may have been in the middle of it.
template <class T>
class PerProcess {
 public:
  PerProcess() = default;
  PerProcess(const PerProcess&) = delete;
  PerProcess& operator=(const PerProcess&) = delete;
  ~PerProcess() {
    Made* made = made_.load();
    if (made && made->forks == fork_count()) delete made;
  }

  template <class Make>
  T& get(const Make& make) {
    Made* found = made_.load(std::memory_order_acquire);
    if (found && found->forks == fork_count()) return *found->value;
    auto fresh = std::make_unique<Made>(Made{fork_count(), make()});
    if (made_.compare_exchange_strong(found, fresh.get())) return *fresh.release()->value;
    return *found->value;  // another thread was faster
  }

 private:
  struct Made {
    int forks;
    std::unique_ptr<T> value;
  };
  std::atomic<Made*> made_{nullptr};
};

}  // namespace gitfast::cpu
