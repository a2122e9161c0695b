// What it costs that blocks wait for each other: those of a grid in three ways, those of a cluster, and with copies on
// their way.
#pragma once

#include <cooperative_groups.h>

#include "probe.cuh"

namespace gpu_probe {

namespace cg = cooperative_groups;

// What the blocks of a grid, or of a cluster, need to meet.
struct Meeting {
  unsigned* counter;   // zero
  ulonglong2* tagged;  // (2, blocks), zeros: a value and the round it belongs to, by parity of the round
  int* late;           // set where a wait was given up, or a value was not the one sent
};

inline __device__ void add_release(unsigned* to) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory");
}
inline __device__ unsigned load_acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
// 16 bytes as one: a reader sees all of a store or nothing of it.
inline __device__ void store_whole(ulonglong2* to, ulonglong2 value) {
  asm volatile("{ .reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed.gpu.global.b128 [%0], v; }" ::"l"(to), "l"(value.x),
               "l"(value.y)
               : "memory");
}
inline __device__ ulonglong2 load_whole(const ulonglong2* from) {
  ulonglong2 value;
  asm volatile("{ .reg .b128 v; ld.relaxed.gpu.global.b128 v, [%2]; mov.b128 {%0, %1}, v; }"
               : "=l"(value.x), "=l"(value.y)
               : "l"(from)
               : "memory");
  return value;
}

inline __device__ bool reaches(const unsigned* counter, unsigned target) {
  for (unsigned polls = 0; polls < kMostPolls; ++polls)
    if (load_acquire(counter) >= target) return true;
  return false;
}
inline __device__ bool arrives(const ulonglong2* slot, ulonglong2 expected) {
  for (unsigned polls = 0; polls < kMostPolls; ++polls) {
    const ulonglong2 seen = load_whole(slot);
    if (seen.y == expected.y) return seen.x == expected.x;
  }
  return false;
}

enum class Way { grid_sync, counter, tagged, cluster };

// Every block meets all others of its grid, or its cluster, `rounds` times.
template <Way kWay>
__global__ void __launch_bounds__(kThreads) meet_kernel(int rounds, Meeting meeting) {
  const unsigned blocks = gridDim.x;
  for (int round = 1; round <= rounds; ++round) {
    bool late = false;
    if constexpr (kWay == Way::grid_sync) {
      cg::this_grid().sync();
    } else if constexpr (kWay == Way::cluster) {
      cg::this_cluster().sync();
    } else if constexpr (kWay == Way::counter) {
      __syncthreads();
      if (threadIdx.x == 0) {
        add_release(meeting.counter);
        late = !reaches(meeting.counter, round * blocks);
      }
    } else {  // a block writes here again when all have read the round between, and so this one
      ulonglong2* slots = meeting.tagged + round % 2 * blocks;
      const unsigned long long tag = round;
      if (threadIdx.x == 0) store_whole(slots + blockIdx.x, {blockIdx.x + tag, tag});
      for (unsigned other = threadIdx.x; other < blocks; other += kThreads)
        late |= !arrives(slots + other, {other + tag, tag});
    }
    if constexpr (kWay == Way::counter || kWay == Way::tagged) {
      if (__syncthreads_or(late)) {
        if (late) *meeting.late = 1;
        return;
      }
    }
  }
}

// 128 KB on their way to the shared memory of every block in each round, and a barrier of the cluster: before the
// copies have arrived, after they have, or none.
constexpr int kInFlight = 128 * 1024;
enum Order { kBarrierInFlight, kBarrierAfter, kNoBarrier };
constexpr const char* kOrders[] = {"barrier_in_flight", "barrier_after", "no_barrier"};
__global__ void __launch_bounds__(kThreads) copying_kernel(int rounds, const char* data, int order) {
  extern __shared__ __align__(128) char ring[];
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(ring)) + threadIdx.x * 16;
  const char* from = data + int64_t{blockIdx.x} * kInFlight + threadIdx.x * 16;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll 8
    for (int i = 0; i < kInFlight; i += kThreads * 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
    if (order == kBarrierInFlight) cg::this_cluster().sync();
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    if (order == kBarrierAfter) cg::this_cluster().sync();
  }
  cg::this_cluster().sync();
}

inline Meeting meeting_of(const Probe& probe) {
  char* memory = probe.scratch();
  return {reinterpret_cast<unsigned*>(memory), reinterpret_cast<ulonglong2*>(memory + 256), probe.late()};
}

template <Way kWay>
void grid_meeting(Probe& probe, const char* name, int blocks) {
  const std::string about = with(with(named(name), "blocks", int64_t{blocks}), "threads", int64_t{kThreads});
  int fit = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, meet_kernel<kWay>, kThreads, 0), "occupancy");
  if (fit * probe.gpu.multiProcessorCount < blocks)
    return probe.report.add_error(about, cudaErrorCooperativeLaunchTooLarge);
  Meeting meeting = meeting_of(probe);
  probe.report.add(about, "us", probe.per_repeat(200, 2200, [&](int rounds) {
    void* arguments[] = {&rounds, &meeting};
    const void* kernel = reinterpret_cast<const void*>(meet_kernel<kWay>);
    check(cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(kThreads), arguments, 0, probe.stream), name);
  }));
}

// As many clusters as run at once, each for itself.
inline void cluster_meeting(Probe& probe, int cluster) {
  std::string about = with(with(named("cluster_barrier"), "cluster", int64_t{cluster}), "threads", int64_t{kThreads});
  cudaLaunchAttribute attribute = cluster_of(cluster);
  cudaLaunchConfig_t config = configured(probe, cluster, &attribute, 0);
  int count = 0;
  cudaError_t status = allow(meet_kernel<Way::cluster>, cluster, 0);
  if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&count, meet_kernel<Way::cluster>, &config);
  if (status == cudaSuccess && count == 0) status = cudaErrorInvalidClusterSize;
  if (status != cudaSuccess) return probe.report.add_error(about, status);
  config.gridDim = dim3(std::min(count, probe.gpu.multiProcessorCount / cluster) * cluster);
  about = with(about, "blocks", int64_t{config.gridDim.x});
  probe.report.add(about, "us", probe.per_repeat(200, 2200, [&](int rounds) {
    check(cudaLaunchKernelEx(&config, meet_kernel<Way::cluster>, rounds, meeting_of(probe)), "cluster launch");
  }));
}

// As many clusters of 8 as the persistent kernel has. The data fits in L2.
inline void copying_meeting(Probe& probe, int order) {
  constexpr int kBlocks = 96;
  const std::string about = with(with(named("cluster_copies"), "order", kOrders[order]), "kB", kInFlight / 1024);
  char* data;
  check(cudaMalloc(&data, size_t{kBlocks} * kInFlight), "cudaMalloc");
  check(cudaMemset(data, 1, size_t{kBlocks} * kInFlight), "cudaMemset");
  cudaLaunchAttribute attribute = cluster_of(8);
  cudaLaunchConfig_t config = configured(probe, kBlocks, &attribute, kInFlight);
  const cudaError_t status = allow(copying_kernel, 8, kInFlight);
  if (status != cudaSuccess) {
    probe.report.add_error(about, status);
  } else {
    probe.report.add(about, "us", probe.per_repeat(100, 1100, [&](int rounds) {
      check(cudaLaunchKernelEx(&config, copying_kernel, rounds, static_cast<const char*>(data), order),
            "launch of copies");
    }));
  }
  check(cudaFree(data), "cudaFree");
}

inline void measure_meetings(Probe& probe) {
  for (int blocks : {96, 132}) {
    grid_meeting<Way::grid_sync>(probe, "grid_sync", blocks);
    grid_meeting<Way::counter>(probe, "counter_barrier", blocks);
    grid_meeting<Way::tagged>(probe, "tagged_data", blocks);
  }
  for (int cluster : {8, 16}) cluster_meeting(probe, cluster);
  for (int order = 0; order < 3; ++order) copying_meeting(probe, order);
}

}  // namespace gpu_probe
