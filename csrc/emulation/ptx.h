// The functions of cuda/ptx.h on the host, where they are described.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulation/emulation.h"

namespace gitfast::cuda {

inline void land(const emulation::Copy& copy) {
  if (copy.from) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    std::memset(copy.to, 0, copy.bytes);
  }
}

// Late copies leave NaN until they are waited for.
inline void cp_async(void* shared, const void* global, bool valid, size_t bytes) {
  emulation::check_alignment(shared, bytes);
  emulation::check_alignment(global, bytes);
  const emulation::Copy copy{shared, valid ? global : nullptr, bytes};
  land(copy);
  if (!emulation::settings.late_copies) return;
  std::memset(shared, 0xff, bytes);
  emulation::running->current().copies.push_back(copy);
}
inline void cp_async16(void* shared, const void* global, bool valid) { cp_async(shared, global, valid, 16); }
inline void cp_async16_after_wait(void* shared, const void* global) {
  if (!emulation::running->current().waited) emulation::running->fail("read before the previous kernel is waited for");
  cp_async16(shared, global, true);
}
inline void cp_async4(void* shared, const void* global, bool valid) { cp_async(shared, global, valid, 4); }

inline void cp_async_commit() {
  emulation::Thread& me = emulation::running->current();
  me.groups.push_back(me.copies.size());
}

template <int kPending>
void cp_async_wait() {
  emulation::Thread& me = emulation::running->current();
  if (me.groups.size() <= kPending) return;
  const size_t groups = me.groups.size() - kPending, landing = me.groups[groups - 1];
  for (size_t i = 0; i < landing; ++i) land(me.copies[i]);
  me.copies.erase(me.copies.begin(), me.copies.begin() + landing);
  me.groups.erase(me.groups.begin(), me.groups.begin() + groups);
  for (size_t& group : me.groups) group -= landing;
}

inline void wait_for_previous_kernel() { emulation::running->current().waited = true; }
inline void let_next_kernel_start() {}

template <class V>
V load_after_wait(const V* from) {
  if (!emulation::running->current().waited) emulation::running->fail("read before the previous kernel is waited for");
  return load_vec(from);
}

template <class V>
V load_streaming(const V* from) {
  return load_vec(from);
}

GITFAST_UNCHECKED inline unsigned increment_acq_rel(unsigned* counter, unsigned last) {
  emulation::check_alignment(counter, alignof(unsigned));
  emulation::Meeting::release(counter);
  const unsigned before = *counter;
  *counter = before >= last ? 0 : before + 1;
  emulation::Meeting::acquire(counter);
  return before;
}

// The rows that the lanes point to; element (row, column) of matrix m is at rows[8 m + row][column].
struct MatrixRows {
  const uint16_t* rows[32];

  MatrixRows(const void* row, const void* site) {
    emulation::check_alignment(row, 16);
    const emulation::Slot* slots = emulation::running->exchange(~0u, &row, sizeof row, site);
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&rows[lane], slots[lane].bytes, sizeof row);
  }
};

[[gnu::noinline]] inline void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  const MatrixRows matrices(row, __builtin_return_address(0));
  const int lane = emulation::running->current().lane, g = lane / 4, t = lane % 4;
  for (int m = 0; m < 4; ++m) {
    const uint16_t* from = matrices.rows[8 * m + g];
    fragment[m] = from[2 * t] | uint32_t{from[2 * t + 1]} << 16;
  }
}

[[gnu::noinline]] inline void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  const MatrixRows matrices(row, __builtin_return_address(0));
  const int lane = emulation::running->current().lane, g = lane / 4, t = lane % 4;
  for (int m = 0; m < 4; ++m) {
    const uint16_t* const* from = matrices.rows + 8 * m;
    fragment[m] = from[2 * t][g] | uint32_t{from[2 * t + 1][g]} << 16;
  }
}

// The two numbers of a register, widened.
template <class T>
void widen(uint32_t pair, float* to) {
  for (int which = 0; which < 2; ++which) {
    const auto bits = static_cast<uint16_t>(pair >> 16 * which);
    T value;
    std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
    to[which] = static_cast<float>(value);
  }
}

template <class T>
[[gnu::noinline]] void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float widened[12];
  for (int i = 0; i < 6; ++i) widen<T>(mine[i], widened + 2 * i);
  const emulation::Slot* slots =
      emulation::running->exchange(~0u, widened, sizeof widened, __builtin_return_address(0));
  // Numbers `which` of the lane that holds pair `pair` of row (or column) `line`.
  const auto of_lane = [&](int line, int pair, int which) {
    return reinterpret_cast<const float*>(slots[4 * line + pair].bytes) + 2 * which;
  };
  const int lane = emulation::running->current().lane, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 16; k += 2) {
      const int right = k / 8, pair = k % 8 / 2;
      const float *x = of_lane(g, pair, lower + 2 * right), *y = of_lane(column, pair, 4 + right);
      sum += double{x[0]} * y[0];
      sum += double{x[1]} * y[1];
    }
    sums[i] = static_cast<float>(sum);
  }
}

}  // namespace gitfast::cuda
