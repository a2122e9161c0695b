// How emulated kernels are run, and what they throw.
#pragma once

#include <stdexcept>

namespace gitfast::emulation {

struct Fault : std::logic_error {
  using std::logic_error::logic_error;
};

enum class Order { forward, reverse, shuffled, run_ahead };

// How the next launches of this OS thread are run.
struct Settings {
  Order order = Order::run_ahead;
  unsigned seed = 0;
  bool late_copies = true;
};
inline thread_local Settings settings;

}  // namespace gitfast::emulation
