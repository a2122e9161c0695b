// The names of CUDA that kernels use, on the host.
#pragma once

#include "emulation/launch.h"

// A function kernels call at a place in the program, which is known by the function's return address.
#define GITFAST_PLACED [[gnu::noinline]] GITFAST_UNCHECKED

namespace gitfast::emulation {

GITFAST_UNCHECKED inline uint3 thread_index() { return running->current().index; }
GITFAST_UNCHECKED inline uint3 block_index() { return running->index; }
GITFAST_UNCHECKED inline dim3 block_size() { return running->block; }
GITFAST_UNCHECKED inline dim3 grid_size() { return running->grid; }
GITFAST_UNCHECKED inline void* shared_memory() { return running->shared.data(); }

// Vectors and asynchronous copies fault on the device where the sanitizers of C++ see nothing wrong.
inline void check_alignment(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment) running->fail("an address is not aligned to what is moved");
}

GITFAST_PLACED inline void sync_threads() { running->barrier(__builtin_return_address(0)); }

GITFAST_PLACED inline void sync_warp(unsigned mask = ~0u) {
  running->exchange(mask, nullptr, 0, __builtin_return_address(0));
}

// The value that lane `source(my lane)` passed, my own where that is in another group of `width` lanes.
template <class T, class Source>
GITFAST_UNCHECKED T shuffle(unsigned mask, T value, int width, const void* site, Source source) {
  const Slot* slots = running->exchange(mask, &value, sizeof value, site);
  const int lane = running->current().lane, first = lane / width * width;
  int from = source(lane, first);
  if (from < first || from >= first + width) from = lane;
  if (!(mask >> from & 1)) running->fail("a shuffle reads a lane that its mask lacks");
  T result;
  std::memcpy(&result, slots[from].bytes, sizeof result);
  return result;
}

template <class T>
GITFAST_PLACED T shuffle_index(unsigned mask, T value, int index, int width = 32) {
  return shuffle(mask, value, width, __builtin_return_address(0),
                 [=](int, int first) { return first + (index & (width - 1)); });
}
template <class T>
GITFAST_PLACED T shuffle_xor(unsigned mask, T value, int lanes, int width = 32) {
  return shuffle(mask, value, width, __builtin_return_address(0), [=](int lane, int) { return lane ^ lanes; });
}
template <class T>
GITFAST_PLACED T shuffle_up(unsigned mask, T value, int lanes, int width = 32) {
  return shuffle(mask, value, width, __builtin_return_address(0), [=](int lane, int) { return lane - lanes; });
}
template <class T>
GITFAST_PLACED T shuffle_down(unsigned mask, T value, int lanes, int width = 32) {
  return shuffle(mask, value, width, __builtin_return_address(0), [=](int lane, int) { return lane + lanes; });
}

GITFAST_UNCHECKED inline unsigned vote(unsigned mask, bool yes, const void* site) {
  const Slot* slots = running->exchange(mask, &yes, sizeof yes, site);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= unsigned{slots[lane].bytes[0]} << lane;
  return votes;
}
GITFAST_PLACED inline unsigned ballot(unsigned mask, bool yes) { return vote(mask, yes, __builtin_return_address(0)); }
GITFAST_PLACED inline bool any(unsigned mask, bool yes) { return vote(mask, yes, __builtin_return_address(0)) != 0; }
GITFAST_PLACED inline bool all(unsigned mask, bool yes) { return vote(mask, yes, __builtin_return_address(0)) == mask; }

GITFAST_UNCHECKED inline void thread_fence() { running->fence(); }

GITFAST_UNCHECKED inline unsigned atomic_increment(unsigned* address, unsigned last) {
  check_alignment(address, alignof(unsigned));
  running->meet_others(address);
  const unsigned before = *address;
  *address = before >= last ? 0 : before + 1;
  return before;
}

GITFAST_UNCHECKED inline unsigned atomic_exchange_if(unsigned* address, unsigned expected, unsigned desired) {
  check_alignment(address, alignof(unsigned));
  running->meet_others(address);
  const unsigned before = *address;
  if (before == expected) *address = desired;
  return before;
}

inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }
inline int first_bit(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int leading_zeros(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }

}  // namespace gitfast::emulation

#define threadIdx (::gitfast::emulation::thread_index())
#define blockIdx (::gitfast::emulation::block_index())
#define blockDim (::gitfast::emulation::block_size())
#define gridDim (::gitfast::emulation::grid_size())
#define __syncthreads() ::gitfast::emulation::sync_threads()
#define __syncwarp(...) ::gitfast::emulation::sync_warp(__VA_ARGS__)
#define __shfl_sync(...) ::gitfast::emulation::shuffle_index(__VA_ARGS__)
#define __shfl_xor_sync(...) ::gitfast::emulation::shuffle_xor(__VA_ARGS__)
#define __shfl_up_sync(...) ::gitfast::emulation::shuffle_up(__VA_ARGS__)
#define __shfl_down_sync(...) ::gitfast::emulation::shuffle_down(__VA_ARGS__)
#define __ballot_sync(...) ::gitfast::emulation::ballot(__VA_ARGS__)
#define __any_sync(...) ::gitfast::emulation::any(__VA_ARGS__)
#define __all_sync(...) ::gitfast::emulation::all(__VA_ARGS__)
#define __threadfence_system() ::gitfast::emulation::thread_fence()
#define __threadfence() ::gitfast::emulation::thread_fence()
#define atomicInc(address, last) ::gitfast::emulation::atomic_increment(address, last)
#define atomicCAS(address, expected, desired) ::gitfast::emulation::atomic_exchange_if(address, expected, desired)
#define __popc(bits) ::gitfast::emulation::count_bits(bits)
#define __ffs(bits) ::gitfast::emulation::first_bit(bits)
#define __clz(bits) ::gitfast::emulation::leading_zeros(bits)

#ifndef __grid_constant__
#define __grid_constant__
#endif
#define __launch_bounds__(...)

// As an array of its own it would have no red zone: use GITFAST_SHARED.
#undef __shared__
#define __shared__ shared_memory_is_declared_by_GITFAST_SHARED
#define GITFAST_SHARED(type, name) type* name = static_cast<type*>(::gitfast::emulation::shared_memory())
