// CUDA kernels on the host: a block runs on one OS thread, each of its CUDA threads is a fiber.
//
// What a kernel may get wrong is made visible, not tolerated:
// - Shared memory starts as NaN in every block, so that reading what nobody wrote spoils the result.
// - Threads run in several orders. Forward, reverse and shuffled take turns at every barrier; "run ahead" lets one warp
//   go on to the next barrier while the others stand still, which shows what lockstep hides: memory reused too early.
// - __syncthreads releases only when every thread of the block waits at the same place in the program; exited threads,
//   different places and deadlocks are errors. So are lanes that are not in their own mask, or read a lane outside it.
// Out-of-bounds accesses of global memory are for the caller to find: arrays that end at a protected page.
//
// Not covered: what the compiler or the hardware does (rounding of fast intrinsics, fences between blocks, occupancy).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/fiber.h"

namespace gitfast::emulation {

struct Fault : std::logic_error {
  using std::logic_error::logic_error;
};

enum class Order { forward, reverse, shuffled, run_ahead };

// How the next launches of this OS thread are run.
struct Settings {
  Order order = Order::run_ahead;
  unsigned seed = 0;
};
inline thread_local Settings settings;

enum class State { ready, at_barrier, at_warp, done };

struct Thread {
  Fiber fiber;
  uint3 index{};
  int warp = 0, lane = 0;
  State state = State::ready;
  const void* site = nullptr;  // where in the program it waits
  unsigned mask = 0;           // of the warp operation it waits at
  int parity = 0;              // of its warp operations: one set of slots is written while the other is still read
};

struct Slot {
  alignas(16) unsigned char bytes[64];
};

class Block {
 public:
  Block(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel)
      : grid(grid),
        block(block),
        shared(new unsigned char[shared_bytes]),
        kernel_(std::move(kernel)),
        shared_bytes_(shared_bytes),
        threads_(size_t{block.x} * block.y * block.z),
        slots_(warps() * 2 * 32),
        random_(settings.seed) {}

  void run(uint3 block_index);

  // For the running thread.
  void barrier(const void* site);
  const Slot* exchange(unsigned mask, const void* value, size_t bytes, const void* site);
  Thread& current() { return *current_; }

  dim3 grid, block;
  uint3 index{};
  std::unique_ptr<unsigned char[]> shared;

 private:
  size_t warps() const { return (threads_.size() + 31) / 32; }
  void start();
  void choose_order();
  void resume_ready();
  void resume(Thread& thread);
  bool release_warps();
  bool release_barrier();
  size_t count(State state) const;
  void yield();

  std::function<void()> kernel_;
  size_t shared_bytes_;
  std::vector<Thread> threads_;
  std::vector<Slot> slots_;  // [warp][parity][lane]
  std::vector<size_t> order_;
  std::mt19937 random_;
  Thread* current_ = nullptr;
};

inline thread_local Block* running = nullptr;

inline void Block::run(uint3 block_index) {
  index = block_index;
  start();
  while (count(State::done) < threads_.size()) {
    resume_ready();
    if (release_warps() || count(State::ready) > 0) continue;
    if (!release_barrier() && count(State::done) < threads_.size())
      throw Fault("deadlock: " + std::to_string(count(State::at_barrier)) + " threads at __syncthreads, " +
                  std::to_string(count(State::at_warp)) + " at warp operations, " + std::to_string(count(State::done)) +
                  " exited");
  }
}

inline void Block::start() {
  choose_order();
  std::memset(shared.get(), 0xff, shared_bytes_);  // NaN as float32, float16 and bfloat16
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
    thread.warp = static_cast<int>(i / 32);
    thread.lane = static_cast<int>(i % 32);
    thread.state = State::ready;
    thread.parity = 0;
    thread.fiber.start([this, &thread] {
      kernel_();
      thread.state = State::done;
    });
  }
}

// Every thread that is ready runs until it waits or ends; running ahead, only those of the first warp that has some.
inline void Block::resume_ready() {
  if (settings.order == Order::shuffled) std::shuffle(order_.begin(), order_.end(), random_);
  if (settings.order != Order::run_ahead) {
    for (const size_t i : order_) resume(threads_[i]);
    return;
  }
  for (const size_t warp : order_) {
    bool ran = false;
    for (size_t i = warp * 32; i < std::min(threads_.size(), warp * 32 + 32); ++i) {
      ran |= threads_[i].state == State::ready;
      resume(threads_[i]);
    }
    if (ran) return;
  }
}

// Which threads go first until the next barrier; running ahead, which warps.
inline void Block::choose_order() {
  order_.resize(settings.order == Order::run_ahead ? warps() : threads_.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  if (settings.order == Order::reverse) std::reverse(order_.begin(), order_.end());
  if (settings.order == Order::run_ahead) std::shuffle(order_.begin(), order_.end(), random_);
}

inline void Block::resume(Thread& thread) {
  if (thread.state != State::ready) return;
  current_ = &thread;
  thread.fiber.resume();
  current_ = nullptr;
}

// Lets go every group of lanes that has arrived complete, at one place and with one mask.
inline bool Block::release_warps() {
  bool released = false;
  for (Thread& first : threads_) {
    if (first.state != State::at_warp) continue;
    const auto in_group = [&](const Thread& t) { return t.warp == first.warp && (first.mask >> t.lane & 1); };
    unsigned arrived = 0;
    for (const Thread& t : threads_)
      if (in_group(t) && t.state == State::at_warp && t.mask == first.mask && t.site == first.site)
        arrived |= 1u << t.lane;
    if (arrived != first.mask) continue;
    const unsigned mask = first.mask;
    const int warp = first.warp;
    for (Thread& t : threads_)
      if (t.warp == warp && (mask >> t.lane & 1)) t.state = State::ready;
    released = true;
  }
  return released;
}

inline bool Block::release_barrier() {
  if (count(State::at_barrier) == 0 || count(State::at_warp) > 0) return false;
  if (const size_t exited = count(State::done))
    throw Fault("__syncthreads: " + std::to_string(exited) + " threads of the block have exited");
  for (const Thread& thread : threads_)
    if (thread.site != threads_[0].site) throw Fault("__syncthreads: threads wait at different places in the program");
  for (Thread& thread : threads_) thread.state = State::ready;
  choose_order();
  return true;
}

inline size_t Block::count(State state) const {
  return std::count_if(threads_.begin(), threads_.end(), [=](const Thread& t) { return t.state == state; });
}

// A fault inside a fiber must not unwind into another stack: threads only wait here, run() throws.
inline void Block::yield() { current_->fiber.yield(); }

inline void Block::barrier(const void* site) {
  current_->site = site;
  current_->state = State::at_barrier;
  yield();
}

// Deposits a value and waits for the lanes of `mask`; then the slots hold the values of all of them.
inline const Slot* Block::exchange(unsigned mask, const void* value, size_t bytes, const void* site) {
  Thread& me = *current_;
  Slot* slots = &slots_[(me.warp * 2 + me.parity) * 32];
  me.parity ^= 1;
  std::memset(slots[me.lane].bytes, 0xff, sizeof(Slot));
  std::memcpy(slots[me.lane].bytes, value, bytes);
  me.site = site;
  me.mask = mask;
  me.state = State::at_warp;  // a lane that is not in its own mask never completes a group: a deadlock, reported
  yield();
  return slots;
}

// Runs all blocks one after another.
template <class Kernel>
void launch(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  Block emulated(grid, block, shared_bytes, kernel);
  running = &emulated;
  struct Restore {
    ~Restore() { running = nullptr; }
  } restore;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) emulated.run({x, y, z});
}

[[gnu::noinline]] inline void sync_threads() { running->barrier(__builtin_return_address(0)); }

[[gnu::noinline]] inline void sync_warp(unsigned mask = ~0u) {
  running->exchange(mask, nullptr, 0, __builtin_return_address(0));
}

template <class T>
[[gnu::noinline]] T shuffle_xor(unsigned mask, T value, int lanes) {
  const Slot* slots = running->exchange(mask, &value, sizeof value, __builtin_return_address(0));
  T result;
  std::memcpy(&result, slots[(running->current().lane ^ lanes) & 31].bytes, sizeof result);
  return result;  // of a lane outside the mask: what an earlier operation left, or NaN
}

}  // namespace gitfast::emulation

#define threadIdx (::gitfast::emulation::running->current().index)
#define blockIdx (::gitfast::emulation::running->index)
#define blockDim (::gitfast::emulation::running->block)
#define gridDim (::gitfast::emulation::running->grid)
#define __syncthreads() ::gitfast::emulation::sync_threads()
#define __syncwarp(...) ::gitfast::emulation::sync_warp(__VA_ARGS__)
#define __shfl_xor_sync(mask, value, lanes) ::gitfast::emulation::shuffle_xor(mask, value, lanes)
#define GITFAST_SHARED(type, name) type* name = reinterpret_cast<type*>(::gitfast::emulation::running->shared.get())
