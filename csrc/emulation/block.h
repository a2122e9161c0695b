// A block of CUDA threads on the host: each is a fiber, one OS thread runs them in turn.
//
// Mistakes of a kernel are made visible, not tolerated:
//
// Shared memory starts as NaN in every block, so that reading what nobody wrote spoils the result.
//
// Threads run in several orders. Forward, reverse and shuffled take turns at every barrier; "run ahead" lets one warp
// go on to the next barrier while the others stand still, which shows what lockstep hides: memory reused too early.
//
// __syncthreads releases only when every thread of the block waits at the same place in the program; exited threads,
// different places and deadlocks are faults. So are lanes that are not in their own mask, or read a lane outside it.
//
// Asynchronous copies land as late as they may, or as early.
//
// The shared memory of a block that has ended must stay as it is: a store by another block of its cluster is a fault.
//
// Built with GITFAST_SANITIZE=address: accesses outside of shared and global memory, and vectors that are not aligned.
//
// Built with GITFAST_SANITIZE=thread: races between threads, whatever the order. Threads of different blocks are
// ordered only by a fence before an atomic operation and, in the other block, an atomic operation before a fence.
//
// Blocks in sequence, or side by side: emulation/launch.h. Not covered: atomic operations and fences by
// different threads of a block, and what the compiler or the hardware does (rounding of fast intrinsics, occupancy).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulation/fiber.h"
#include "emulation/settings.h"

namespace gitfast::emulation {

enum class State { ready, at_barrier, at_warp, at_cluster, polling, failed, done };

// An asynchronous copy that has not landed.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  int warp = 0, lane = 0;
  State state = State::ready;
  const void* site = nullptr;  // where in the program it waits
  unsigned mask = 0;           // of the warp operation it waits at
  int parity = 0;              // of its warp operations: one set of slots is written while the other is still read
  bool waited = false;         // for the kernel before this one
  std::vector<Copy> copies;    // issued, in order
  std::vector<size_t> groups;  // how many of them were issued when each group was committed
  bool fenced = false;         // since its last atomic operation
  void* seen = nullptr;        // what its last atomic operation read
  uint64_t stores_seen = 0;    // when it began to wait for a value
};

struct Slot {
  alignas(16) unsigned char bytes[64];
};

// Memory of exactly `bytes`, so that AddressSanitizer sees an access behind its end.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), data_(::operator new(bytes, kAlignment)) {}
  ~SharedMemory() { ::operator delete(data_, kAlignment); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  void poison() { std::memset(data_, 0xff, bytes_); }  // NaN as float32, float16 and bfloat16
  void* data() const { return data_; }

  // Marks memory that nobody may write to any more, and whether it is still as it was.
  GITFAST_UNCHECKED void seal() {
    for (size_t i = 0; i < bytes_; ++i) bytes()[i] = kSeal;
  }
  GITFAST_UNCHECKED bool sealed() const {
    for (size_t i = 0; i < bytes_; ++i)
      if (bytes()[i] != kSeal) return false;
    return true;
  }

 private:
  static constexpr unsigned char kSeal = 0xa5;
  // Volatile: a compiler would call memset, which the sanitizers watch.
  volatile unsigned char* bytes() const { return static_cast<volatile unsigned char*>(data_); }

  static constexpr std::align_val_t kAlignment{128};
  size_t bytes_;
  void* data_;
};

class Block;

// Blocks that run side by side: those of a cluster, or of a whole grid.
struct Neighbours {
  std::vector<Block*> blocks;
  std::vector<Meeting> meetings;  // of each cluster
  unsigned cluster = 1;           // blocks of one
  uint64_t stores = 0;            // of atomic values, for which threads may wait
  bool hopeless = false;          // nothing moves, and no value that a thread waits for will come
};

class Block {
 public:
  Block(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel)
      : grid(grid),
        block(block),
        shared(shared_bytes),
        kernel_(std::move(kernel)),
        threads_(size_t{block.x} * block.y * block.z),
        slots_(warps() * 2 * 32),
        warp_meetings_(warps()),
        random_(settings.seed) {}

  // `position`: of this block among its neighbours.
  void start(uint3 block_index, Neighbours& neighbours, size_t position);
  // Lets threads run until they wait, and those go on that may. False when nothing moved.
  bool advance();
  // After the last run: whether no other block wrote to the shared memory of this one when it had ended.
  bool left_alone() const { return neighbours_->cluster == 1 || shared.sealed(); }
  bool done() const { return count(State::done) == threads_.size(); }
  // True where all threads wait for the cluster, at the same place as those of `first`.
  bool at_cluster_with(const Block& first) const;
  void leave_cluster();
  std::string describe() const;
  // After the last run: what the threads did comes before what follows.
  void join();

  // For the running thread.
  GITFAST_UNCHECKED void barrier(const void* site);
  GITFAST_UNCHECKED const Slot* exchange(unsigned mask, const void* value, size_t bytes, const void* site);
  GITFAST_UNCHECKED Thread& current() { return *current_; }
  GITFAST_UNCHECKED void fence();
  GITFAST_UNCHECKED void meet_others(void* address);
  GITFAST_UNCHECKED void cluster_barrier(const void* site);
  // Until an atomic value changes; false when none ever will.
  GITFAST_UNCHECKED bool poll();
  GITFAST_UNCHECKED Neighbours& neighbours() { return *neighbours_; }
  // The rank of this block within its cluster.
  GITFAST_UNCHECKED unsigned rank() const { return index.x % neighbours_->cluster; }
  // The same place in the shared memory of another block of the cluster.
  GITFAST_UNCHECKED void* in_block(unsigned rank, void* address);
  [[noreturn]] GITFAST_UNCHECKED void fail(const char* fault);

  dim3 grid, block;
  uint3 index{};
  SharedMemory shared;

 private:
  size_t warps() const { return (threads_.size() + 31) / 32; }
  GITFAST_UNCHECKED void run_thread(Thread& thread);
  void choose_order();
  void resume_ready();
  void resume(Thread& thread);
  bool release_warps();
  bool release_barrier();
  void wake_polling();
  size_t count(State state) const;

  Neighbours* neighbours_ = nullptr;
  size_t position_ = 0;  // among the neighbours
  bool begun_ = false, ended_ = false;
  std::function<void()> kernel_;
  std::vector<Thread> threads_;
  std::vector<Slot> slots_;  // [warp][parity][lane]
  Meeting barrier_meeting_;
  std::vector<Meeting> warp_meetings_;
  std::vector<size_t> order_;
  std::mt19937 random_;
  Thread* current_ = nullptr;
  const char* fault_ = nullptr;
};

inline thread_local Block* running = nullptr;
GITFAST_UNCHECKED inline void set_running(Block* block) { running = block; }

inline bool Block::advance() {
  begun_ = true;
  wake_polling();
  const bool ran = count(State::ready) > 0;
  resume_ready();
  if (fault_) throw Fault(fault_);
  if (done() && !ended_) {
    ended_ = true;
    if (neighbours_->cluster > 1) shared.seal();
  }
  if (release_warps() || count(State::ready) > 0) return true;
  return release_barrier() || ran;
}

inline void Block::wake_polling() {
  for (Thread& thread : threads_)
    if (thread.state == State::polling && (neighbours_->hopeless || thread.stores_seen != neighbours_->stores))
      thread.state = State::ready;
}

inline std::string Block::describe() const {
  return std::to_string(count(State::at_barrier)) + " threads at __syncthreads, " +
         std::to_string(count(State::at_warp)) + " at warp operations, " + std::to_string(count(State::at_cluster)) +
         " at the cluster's barrier, " + std::to_string(count(State::done)) + " exited";
}

inline bool Block::at_cluster_with(const Block& first) const {
  return std::all_of(threads_.begin(), threads_.end(),
                     [&](const Thread& t) { return t.state == State::at_cluster && t.site == first.threads_[0].site; });
}

inline void Block::leave_cluster() {
  for (Thread& thread : threads_) thread.state = State::ready;
  choose_order();
}

inline void Block::join() {
  for (Thread& thread : threads_) thread.fiber.join();
}

inline void Block::start(uint3 block_index, Neighbours& neighbours, size_t position) {
  index = block_index;
  neighbours_ = &neighbours;
  position_ = position;
  begun_ = ended_ = false;
  choose_order();
  shared.poison();
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
    thread.warp = static_cast<int>(i / 32);
    thread.lane = static_cast<int>(i % 32);
    thread.state = State::ready;
    thread.parity = 0;
    thread.waited = false;
    thread.copies.clear();
    thread.groups.clear();
    thread.fenced = false;
    thread.seen = nullptr;
    thread.fiber.start([this, &thread] { run_thread(thread); });
  }
}

inline void Block::run_thread(Thread& thread) {
  kernel_();
  thread.state = State::done;
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

// The threads that go first until the next barrier; running ahead, the warps.
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
    const size_t begin = size_t{32} * first.warp, end = std::min(threads_.size(), begin + 32);
    const auto in_group = [&](const Thread& t) {
      return t.state == State::at_warp && t.mask == first.mask && t.site == first.site && (first.mask >> t.lane & 1);
    };
    unsigned arrived = 0;
    for (size_t i = begin; i < end; ++i)
      if (in_group(threads_[i])) arrived |= 1u << threads_[i].lane;
    if (arrived != first.mask) continue;
    for (size_t i = begin; i < end; ++i)
      if (arrived >> threads_[i].lane & 1) threads_[i].state = State::ready;
    released = true;
  }
  return released;
}

inline bool Block::release_barrier() {
  const size_t waiting = count(State::at_barrier), exited = count(State::done);
  if (waiting == 0 || waiting + exited < threads_.size()) return false;
  if (exited) throw Fault("__syncthreads: " + std::to_string(exited) + " threads of the block have exited");
  for (const Thread& thread : threads_)
    if (thread.site != threads_[0].site) throw Fault("__syncthreads: threads wait at different places in the program");
  for (Thread& thread : threads_) thread.state = State::ready;
  choose_order();
  return true;
}

inline size_t Block::count(State state) const {
  return std::count_if(threads_.begin(), threads_.end(), [=](const Thread& t) { return t.state == state; });
}

inline void Block::barrier(const void* site) {
  Thread& me = *current_;
  me.site = site;
  me.state = State::at_barrier;
  barrier_meeting_.release();
  me.fiber.yield();
  barrier_meeting_.acquire();
}

inline void Block::cluster_barrier(const void* site) {
  Thread& me = *current_;
  me.site = site;
  me.state = State::at_cluster;
  Meeting& meeting = neighbours_->meetings[index.x / neighbours_->cluster % neighbours_->meetings.size()];
  meeting.release();
  me.fiber.yield();
  meeting.acquire();
}

inline bool Block::poll() {
  if (neighbours_->hopeless) return false;
  Thread& me = *current_;
  me.stores_seen = neighbours_->stores;
  me.state = State::polling;
  me.fiber.yield();
  return true;
}

inline void* Block::in_block(unsigned rank, void* address) {
  if (rank >= neighbours_->cluster) fail("the cluster has no block of this rank");
  const Block& other = *neighbours_->blocks[position_ - this->rank() + rank];
  if (!other.begun_) fail("shared memory of a block that has not begun");
  if (other.ended_) fail("shared memory of a block that has ended");
  return static_cast<char*>(other.shared.data()) + (static_cast<char*>(address) - static_cast<char*>(shared.data()));
}

// Deposits a value and waits for the lanes of `mask`; then the slots hold the values of all of them.
inline const Slot* Block::exchange(unsigned mask, const void* value, size_t bytes, const void* site) {
  Thread& me = *current_;
  if (!(mask >> me.lane & 1)) fail("a warp operation's mask lacks a lane that takes part");
  Slot* slots = &slots_[(me.warp * 2 + me.parity) * 32];
  me.parity ^= 1;
  if (bytes > 0) std::memcpy(slots[me.lane].bytes, value, bytes);
  me.site = site;
  me.mask = mask;
  me.state = State::at_warp;
  Meeting& meeting = warp_meetings_[me.warp];
  meeting.release();
  me.fiber.yield();
  meeting.acquire();
  return slots;
}

// Orders what this thread has seen before its next atomic operation, and what the threads whose atomic operations it
// saw had seen before everything that follows.
inline void Block::fence() {
  Thread& me = *current_;
  if (me.seen) Meeting::acquire(me.seen);
  me.fenced = true;
}

// Before an atomic operation on this address.
inline void Block::meet_others(void* address) {
  Thread& me = *current_;
  if (me.fenced) Meeting::release(address);
  me.fenced = false;
  me.seen = address;
}

// A fault inside a fiber must not unwind into another stack: the thread stops here, run() throws.
inline void Block::fail(const char* fault) {
  fault_ = fault;
  current_->state = State::failed;
  for (;;) current_->fiber.yield();
}

}  // namespace gitfast::emulation
