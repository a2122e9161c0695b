// Instructions that CUDA C++ has no names for, as functions; under a C++ compiler their emulation.
//
// Fragments are as the PTX ISA lays them out: with g = lane / 4 and t = lane % 4, a register holds two neighbours along
// a row, of row g (and g + 8) and columns 2t, 2t + 1 (and 2t + 8, 2t + 9).
#pragma once

#include <cstring>

#include "cuda/platform.h"

#ifndef __CUDACC__
#include "emulation/ptx.h"
#else

namespace gitfast::cuda {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Starts a copy of 16 bytes to shared memory, both ends aligned to 16; zeros where not `valid`, and nothing is read.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// The same of what the previous kernel may have written.
__device__ __forceinline__ void cp_async16_after_wait(void* shared, const void* global) {
  cp_async16(shared, global, true);
}
// The same of 4 bytes.
__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}
// Ends a group of the copies this thread has started.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's groups, all but the newest `kPending`.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A kernel launched to overlap with the one before it in the stream (Launch::overlap) must call this in every thread,
// before it reads what that one writes, and before it ends.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel start if it was launched to overlap with this one.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// A vector of what the previous kernel may have written.
template <class V>
__device__ __forceinline__ V load_after_wait(const V* from) {
  return load_vec(from);
}
// 16 bytes that no kernel writes and only this block reads: they leave the nearest cache to others. Not the read-only
// (.nc) instruction, which ptxas moves behind wait_for_previous_kernel: what is loaded before it stays before it.
template <class V>
__device__ __forceinline__ V load_streaming(const V* from) {
  static_assert(sizeof(V) == 16, "one instruction moves 16 bytes");
  uint32_t words[4];
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from)
               : "memory");
  V value;
  memcpy(&value, words, sizeof value);
  return value;
}

// Increments a counter that wraps to 0 after `last`; returns the value before. All that this thread has seen is seen by
// threads that increment it later.
__device__ __forceinline__ unsigned increment_acq_rel(unsigned* counter, unsigned last) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last) : "memory");
  return before;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane i points to row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums (16, 8) += a (16, 16) b (16, 8), float32 sums of products of T.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define GITFAST_MMA(type, ptx)                                                                              \
  template <>                                                                                               \
  __device__ __forceinline__ void mma_m16n8k16<type>(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, \
                                                     uint32_t b1) {                                         \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ptx "." ptx                                       \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                           \
  }
GITFAST_MMA(__half, "f16")
GITFAST_MMA(__nv_bfloat16, "bf16")
#undef GITFAST_MMA

}  // namespace gitfast::cuda
#endif
