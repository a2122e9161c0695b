// Communication of blocks that run side by side: the barrier and the shared memory of a cluster, and values in
// global memory that one block stores and others wait for. Clusters need compute capability 9.0; under a C++ compiler
// their emulation.
#pragma once

#include "cuda/platform.h"

#ifndef __CUDACC__
#include "emulation/cluster.h"
#else

namespace gitfast::cuda {

// Waits for all threads of the cluster: what each wrote before, in global and any block's shared memory, all see after.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // the whole warp arrives by one instruction
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// The same place in the shared memory of the cluster's block `rank`, which has begun and not ended.
template <class T>
__device__ __forceinline__ T* in_block(unsigned rank, T* shared) {
#if __CUDA_ARCH__ >= 900
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
#else
  return shared;
#endif
}

// Adds to a counter; what this thread knows of by then, whoever reads the sum by load_acquire sees.
__device__ __forceinline__ void add_release(unsigned* counter, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// Stores `desired` where the value is `expected`; returns the value found. Ordered as add_release and load_acquire are.
__device__ __forceinline__ unsigned compare_exchange(unsigned* value, unsigned expected, unsigned desired) {
  unsigned found;
  asm volatile("atom.acq_rel.gpu.global.cas.b32 %0, [%1], %2, %3;"
               : "=r"(found)
               : "l"(value), "r"(expected), "r"(desired)
               : "memory");
  return found;
}

// The multiprocessor that runs this block.
__device__ __forceinline__ int multiprocessor() {
  unsigned number;
  asm("mov.u32 %0, %%smid;" : "=r"(number));
  return static_cast<int>(number);
}

// Between two looks at a value that another block will store: false after about a second, when it will not.
__device__ __forceinline__ bool keep_polling(unsigned& polls) {
  constexpr unsigned kMost = 1u << 21;  // of 64 ns and a round trip to the cache
  if (polls >= 16) __nanosleep(64);     // most waits are shorter than this
  return ++polls < kMost;
}

// A vector from the cache that all multiprocessors share, for what other blocks wrote while this one runs.
template <class V>
__device__ __forceinline__ V load_shared_cache(const V* from) {
  static_assert(sizeof(V) == 16, "one instruction moves 16 bytes");
  uint32_t words[4];
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from)
               : "memory");
  V value;
  memcpy(&value, words, sizeof value);
  return value;
}

}  // namespace gitfast::cuda
#endif
