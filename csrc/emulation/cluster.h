// The functions of cuda/cluster.h on the host, where they are described.
#pragma once

#include "emulation/ptx.h"

namespace gitfast::cuda {

GITFAST_PLACED inline void cluster_sync() { emulation::running->cluster_barrier(__builtin_return_address(0)); }

template <class T>
GITFAST_UNCHECKED T* in_block(unsigned rank, T* shared) {
  return static_cast<T*>(emulation::running->in_block(rank, shared));
}

GITFAST_UNCHECKED inline void add_release(unsigned* counter, unsigned value) {
  emulation::Meeting::release(counter);
  *counter += value;
  ++emulation::running->neighbours().stores;
}

GITFAST_UNCHECKED inline unsigned load_acquire(const unsigned* counter) {
  const unsigned value = *counter;
  emulation::Meeting::acquire(const_cast<unsigned*>(counter));
  return value;
}

GITFAST_UNCHECKED inline unsigned compare_exchange(unsigned* value, unsigned expected, unsigned desired) {
  emulation::Meeting::acquire(value);
  emulation::Meeting::release(value);
  const unsigned found = *value;
  if (found == expected) *value = desired;
  ++emulation::running->neighbours().stores;
  return found;
}

inline int multiprocessor() { return static_cast<int>(emulation::block_index().x); }

inline bool keep_polling(unsigned&) { return emulation::running->poll(); }

template <class V>
V load_shared_cache(const V* from) {
  return load_after_wait(from);
}

}  // namespace gitfast::cuda
