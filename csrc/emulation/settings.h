// Settings of emulated kernels, and the exceptions they throw.
#pragma once

#include <stdexcept>

namespace gitfast::emulation {

struct Fault : std::logic_error {
  using std::logic_error::logic_error;
};

enum class Order { forward, reverse, shuffled, run_ahead };

// The settings of this OS thread's next launches.
struct Settings {
  Order order = Order::run_ahead;
  unsigned seed = 0;
  bool late_copies = true;
};
inline thread_local Settings settings;

}  // namespace gitfast::emulation
