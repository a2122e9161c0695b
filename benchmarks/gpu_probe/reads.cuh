// How fast memory and caches are read again and again: by loads, by asynchronous copies of threads, by bulk copies,
// each with three ways to leave the cache.
#pragma once

#include "probe.cuh"

namespace gpu_probe {

enum class Load { registers, async, bulk };
constexpr int kStages = 6, kChunk = 16384;  // bytes
constexpr int kVectors = kChunk / 16 / kThreads;

inline __device__ uint64_t policy(int eviction) {
  uint64_t made;
  if (eviction == 0) {
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(made));
  } else if (eviction == 1) {
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(made));
  } else {
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(made));
  }
  return made;
}
constexpr const char* kEvictions[] = {"evict_normal", "evict_first", "evict_last"};

// Chunk i of this block, of a buffer that is read again and again; all blocks go through it side by side.
inline __device__ const char* chunk_at(const char* data, int64_t chunks, int64_t i) {
  return data + (blockIdx.x + i * gridDim.x) % chunks * kChunk;
}

// Reads `count` chunks per block and leaves a word that depends on all of them.
__global__ void __launch_bounds__(kThreads)
    read_registers_kernel(const char* data, int64_t chunks, int count, int eviction, unsigned* out) {
  const uint64_t hint = policy(eviction);
  unsigned sum = 0;
  for (int i = 0; i < count; ++i) {
    const char* from = chunk_at(data, chunks, i) + threadIdx.x * 16;
    uint4 words[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j)
      asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                   : "=r"(words[j].x), "=r"(words[j].y), "=r"(words[j].z), "=r"(words[j].w)
                   : "l"(from + j * kThreads * 16), "l"(hint));
#pragma unroll
    for (int j = 0; j < kVectors; ++j) sum ^= words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
  }
  if (sum == 1) *out = sum;
}

// The same through a ring in shared memory, every thread for itself.
__global__ void __launch_bounds__(kThreads)
    read_async_kernel(const char* data, int64_t chunks, int count, int eviction, unsigned* out) {
  extern __shared__ __align__(128) char ring[];
  const uint64_t hint = policy(eviction);
  const auto start = [&](int i) {
    if (i < count) {
      const char* from = chunk_at(data, chunks, i) + threadIdx.x * 16;
      char* to = ring + i % kStages * kChunk + threadIdx.x * 16;
#pragma unroll
      for (int j = 0; j < kVectors; ++j)
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                         shared_address(to + j * kThreads * 16)),
                     "l"(from + j * kThreads * 16), "l"(hint)
                     : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int i = 0; i < kStages - 1; ++i) start(i);
  unsigned sum = 0;
  for (int i = 0; i < count; ++i) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    sum ^= *reinterpret_cast<const unsigned*>(ring + i % kStages * kChunk + threadIdx.x * 16);
    start(i + kStages - 1);  // into the stage that was read one chunk ago
  }
  if (sum == 1) *out = sum;
}

inline __device__ bool completes(const uint64_t* barrier, unsigned parity) {
  for (unsigned polls = 0; polls < kMostPolls; ++polls) {
    unsigned done;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    if (done) return true;
  }
  return false;
}

// The same by bulk copies of whole chunks; one warp per block, whose first lane starts them.
__global__ void __launch_bounds__(32)
    read_bulk_kernel(const char* data, int64_t chunks, int count, int eviction, unsigned* out, int* late) {
  extern __shared__ __align__(128) char ring[];
  __shared__ uint64_t full[kStages];
  const uint64_t hint = policy(eviction);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + s)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
  const auto start = [&](int i) {
    if (threadIdx.x != 0 || i >= count) return;
    const unsigned barrier = shared_address(full + i % kStages);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(kChunk) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(shared_address(ring + i % kStages * kChunk)),
        "l"(chunk_at(data, chunks, i)), "r"(kChunk), "r"(barrier), "l"(hint)
        : "memory");
  };
  for (int i = 0; i < kStages; ++i) start(i);
  unsigned sum = 0;
  for (int i = 0; i < count; ++i) {
    if (!completes(full + i % kStages, i / kStages % 2)) {
      *late = 1;
      return;
    }
    sum ^= *reinterpret_cast<const unsigned*>(ring + i % kStages * kChunk + threadIdx.x * 16);
    __syncwarp();
    start(i + kStages);
  }
  if (sum == 1) *out = sum;
}

// A buffer read again and again: 16 GB or so in one launch.
inline void read(Probe& probe, Load load, const char* data, int64_t megabytes, int64_t megabyte, int eviction) {
  const int64_t chunks = megabytes * megabyte / kChunk;
  const size_t ring = load == Load::registers ? 0 : size_t{kStages} * kChunk;
  const int blocks = probe.gpu.multiProcessorCount * (load == Load::registers ? 8 : 2);
  const int count = static_cast<int>(16000 * megabyte / kChunk / blocks);
  constexpr cudaFuncAttribute kShared = cudaFuncAttributeMaxDynamicSharedMemorySize;
  check(cudaFuncSetAttribute(read_async_kernel, kShared, kStages * kChunk), "cudaFuncSetAttribute");
  check(cudaFuncSetAttribute(read_bulk_kernel, kShared, kStages * kChunk), "cudaFuncSetAttribute");
  check(cudaCtxResetPersistingL2Cache(), "cudaCtxResetPersistingL2Cache");  // what reads before this made stay
  unsigned* out = reinterpret_cast<unsigned*>(probe.scratch());
  std::vector<double> samples;
  for (int i = -1; i < kRounds; ++i) {
    const double took = probe.device_us([&] {
      if (load == Load::registers) {
        read_registers_kernel<<<blocks, kThreads, 0, probe.stream>>>(data, chunks, count, eviction, out);
      } else if (load == Load::async) {
        read_async_kernel<<<blocks, kThreads, ring, probe.stream>>>(data, chunks, count, eviction, out);
      } else {
        read_bulk_kernel<<<blocks, 32, ring, probe.stream>>>(data, chunks, count, eviction, out, probe.late());
      }
    });
    if (i >= 0) samples.push_back(double(count) * blocks * kChunk / took / 1e3);
  }
  const char* names[] = {"ld.global.nc.v4", "cp.async", "cp.async.bulk"};
  std::string about = with(named("read"), "by", names[static_cast<int>(load)]);
  probe.report.add(with(with(about, "megabytes", megabytes), "eviction", kEvictions[eviction]), "GB/s", samples);
}

inline void measure_reads(Probe& probe) {
  constexpr int64_t kMegabyte = 1000 * 1000;
  const auto whole = [](int64_t bytes) { return bytes / kChunk * kChunk; };
  char* data;
  check(cudaMalloc(&data, whole(528 * kMegabyte)), "cudaMalloc of 528 MB");
  check(cudaMemset(data, 0x5a, whole(528 * kMegabyte)), "cudaMemset");
  for (int64_t megabytes : {20, 37, 50, 132, 528})
    for (Load load : {Load::registers, Load::async, Load::bulk})
      for (int eviction = 0; eviction < 3; ++eviction) read(probe, load, data, megabytes, kMegabyte, eviction);
  check(cudaFree(data), "cudaFree");
}

}  // namespace gpu_probe
