// Measures what decides the design of a low-latency decode: how fast blocks tell each other something, what a node of a
// graph and a launch cost, how fast memory and caches are read in several ways, and how many large clusters run at
// once.
//
//     nvcc -arch=sm_90a -std=c++17 -O3 -o gpu_probe benchmarks/gpu_probe.cu && ./gpu_probe [FILE]
//
// Adds lines of JSON to FILE as they come, so that whatever ends the program leaves what was measured: the device, then
// one row per measurement with its unit, the median and the extremes of kRounds samples; a row that cannot be measured
// says why. Repeated work is timed at two lengths, so that launches cancel. Waits of blocks for others
// give up after kMostPolls; those inside grid.sync and cluster barriers end because their blocks run together, which
// the launch makes sure of. For compute capability 9.0 and later.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace {

namespace cg = cooperative_groups;

constexpr int kRounds = 9, kThreads = 256;
constexpr unsigned kMostPolls = 1u << 20;  // a second or so

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "gpu_probe: %s\n", message.c_str());
  std::exit(1);
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(status));
}

// ---- What the blocks of a grid, or of a cluster, need to meet

struct Meeting {
  unsigned* counter;   // zero
  ulonglong2* tagged;  // (2, blocks), zeros: a value and the round it belongs to, by parity of the round
  int* late;           // set where a wait was given up, or a value was not the one sent
};

__device__ void add_release(unsigned* to) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory");
}
__device__ unsigned load_acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
// 16 bytes as one: a reader sees all of a store or nothing of it.
__device__ void store_whole(ulonglong2* to, ulonglong2 value) {
  asm volatile("{ .reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed.gpu.global.b128 [%0], v; }" ::"l"(to), "l"(value.x),
               "l"(value.y)
               : "memory");
}
__device__ ulonglong2 load_whole(const ulonglong2* from) {
  ulonglong2 value;
  asm volatile("{ .reg .b128 v; ld.relaxed.gpu.global.b128 v, [%2]; mov.b128 {%0, %1}, v; }"
               : "=l"(value.x), "=l"(value.y)
               : "l"(from)
               : "memory");
  return value;
}

__device__ bool reaches(const unsigned* counter, unsigned target) {
  for (unsigned polls = 0; polls < kMostPolls; ++polls)
    if (load_acquire(counter) >= target) return true;
  return false;
}
__device__ bool arrives(const ulonglong2* slot, ulonglong2 expected) {
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

// Tries whether a grid of clusters may be launched cooperatively: both barriers, once.
__global__ void __launch_bounds__(kThreads) meet_both_kernel() {
  cg::this_cluster().sync();
  cg::this_grid().sync();
}

// ---- Nodes of graphs

__global__ void empty_kernel() {}

__global__ void overlapping_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__global__ void count_down_kernel(cudaGraphConditionalHandle again, int* left) {
  const int now = --*left;
  cudaGraphSetConditional(again, now > 0);
}

// ---- Reading memory

enum class Load { registers, async, bulk };
constexpr int kStages = 6, kChunk = 16384;  // bytes
constexpr int kVectors = kChunk / 16 / kThreads;

__device__ uint64_t policy(int eviction) {
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

__device__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Chunk i of this block, of a buffer that is read again and again; all blocks go through it side by side.
__device__ const char* chunk_at(const char* data, int64_t chunks, int64_t i) {
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

__device__ bool completes(const uint64_t* barrier, unsigned parity) {
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

// ---- Host

// A line of the report: `about` are members of JSON, as they are written there.
class Report {
 public:
  explicit Report(std::FILE* file) : file_(file) {}
  void add(const std::string& about, const char* unit, std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    char numbers[160];
    std::snprintf(numbers, sizeof numbers, "\"unit\": \"%s\", \"median\": %.4g, \"least\": %.4g, \"most\": %.4g", unit,
                  samples[samples.size() / 2], samples.front(), samples.back());
    line(about + ", " + numbers + ", \"samples\": " + std::to_string(samples.size()));
  }
  void add_number(const std::string& about, const char* unit, int value) {
    line(about + ", \"unit\": \"" + unit + "\", \"value\": " + std::to_string(value));
  }
  void add_error(const std::string& about, cudaError_t status) {
    cudaGetLastError();  // or the next launch reports it again
    line(about + ", \"error\": \"" + cudaGetErrorString(status) + "\"");
  }
  void line(const std::string& members) {
    for (std::FILE* to : {stdout, file_}) {
      if (!to) continue;
      std::fprintf(to, "{\"kind\": \"Probe\", %s}\n", members.c_str());
      std::fflush(to);
    }
  }

 private:
  std::FILE* file_;  // may be null
};

std::string named(const char* name) { return std::string("\"name\": \"") + name + "\""; }
std::string with(const std::string& about, const char* key, int64_t value) {
  return about + ", \"" + key + "\": " + std::to_string(value);
}
std::string with(const std::string& about, const char* key, const char* value) {
  return about + ", \"" + key + "\": \"" + value + "\"";
}

class Probe {
 public:
  explicit Probe(std::FILE* file) : report_(file) {
    check(cudaGetDeviceProperties(&gpu_, 0), "cudaGetDeviceProperties");
    if (gpu_.major < 9) fail(std::string(gpu_.name) + ": expected compute capability 9.0 or later");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    check(cudaMalloc(&memory_, kScratch), "cudaMalloc");
    check(cudaMemset(memory_, 0, kScratch), "cudaMemset");
    meeting_.counter = reinterpret_cast<unsigned*>(memory_);
    meeting_.late = reinterpret_cast<int*>(memory_) + 64;
    left_ = reinterpret_cast<int*>(memory_) + 128;
    out_ = reinterpret_cast<unsigned*>(memory_) + 192;
    meeting_.tagged = reinterpret_cast<ulonglong2*>(memory_ + 4096);
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    std::string about = with(with(named("device"), "gpu", gpu_.name), "multiprocessors", gpu_.multiProcessorCount);
    about = with(with(about, "l2_bytes", gpu_.l2CacheSize), "driver", int64_t{driver});
    report_.line(with(about, "runtime", int64_t{runtime}));
  }

  void meetings() {
    for (int blocks : {96, 132}) {
      grid_meeting<Way::grid_sync>("grid_sync", blocks);
      grid_meeting<Way::counter>("counter_barrier", blocks);
      grid_meeting<Way::tagged>("tagged_data", blocks);
    }
    for (int cluster : {8, 16}) cluster_meeting(cluster);
    for (int order = 0; order < 3; ++order) copying_meeting(order);
  }

  void graphs() {
    for (int blocks : {1, 132}) {
      graph_nodes("graph_node", empty_kernel, false, blocks);
      graph_nodes("graph_node", overlapping_kernel, true, blocks);
    }
    while_node();
  }

  void reads() {
    constexpr int64_t kMegabyte = 1000 * 1000;
    const auto whole = [](int64_t bytes) { return bytes / kChunk * kChunk; };
    char* data;
    check(cudaMalloc(&data, whole(528 * kMegabyte)), "cudaMalloc of 528 MB");
    check(cudaMemset(data, 0x5a, whole(528 * kMegabyte)), "cudaMemset");
    for (int64_t megabytes : {20, 37, 50, 132, 528})
      for (Load load : {Load::registers, Load::async, Load::bulk})
        for (int eviction = 0; eviction < 3; ++eviction) read(load, data, megabytes, kMegabyte, eviction);
    check(cudaFree(data), "cudaFree");
  }

  void clusters() {
    for (int cluster : {8, 16})
      for (int kilobytes : {100, 200, 220}) {
        const std::string about =
            with(with(named("active_clusters"), "cluster", cluster), "shared_kB", int64_t{kilobytes});
        cudaLaunchAttribute attribute = cluster_of(cluster);
        cudaLaunchConfig_t config = configured(cluster, &attribute, kilobytes * 1024);
        cudaError_t status = allow(meet_kernel<Way::cluster>, cluster, kilobytes * 1024);
        int count = 0;
        if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&count, meet_kernel<Way::cluster>, &config);
        status == cudaSuccess ? report_.add_number(about, "clusters", count) : report_.add_error(about, status);
      }
    cudaLaunchAttribute attributes[2] = {cluster_of(8), {}};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    constexpr int kShared = 210 * 1024, kClusters = 12;  // as the persistent kernel is launched
    cudaLaunchConfig_t config = configured(8 * kClusters, attributes, kShared);
    config.numAttrs = 2;
    cudaError_t status = allow(meet_both_kernel, 8, kShared);
    if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, meet_both_kernel);
    if (status == cudaSuccess) status = cudaStreamSynchronize(stream_);
    std::string about =
        with(with(named("cooperative_launch_of_clusters"), "cluster", int64_t{8}), "clusters", kClusters);
    about = with(about, "shared_bytes", kShared);
    status == cudaSuccess ? report_.add_number(about, "possible", 1) : report_.add_error(about, status);
  }

  void launches() {
    report_.add(named("launch"), "us", per_repeat(100, 1100, [&](int count) {
                  for (int i = 0; i < count; ++i) empty_kernel<<<1, 32, 0, stream_>>>();
                }));
    report_.add(named("launch_and_wait"), "us", host_times([&] { empty_kernel<<<1, 32, 0, stream_>>>(); }));
    cudaGraphExec_t graph = chain(empty_kernel, false, 1, 1);
    report_.add(named("graph_launch_and_wait"), "us",
                host_times([&] { check(cudaGraphLaunch(graph, stream_), "cudaGraphLaunch"); }));
    check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
  }

 private:
  static constexpr size_t kScratch = 64 * 1024;

  double device_us(const std::function<void()>& enqueue) {
    check(cudaMemsetAsync(memory_, 0, kScratch, stream_), "cudaMemset");
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    enqueue();
    check(cudaGetLastError(), "launch");
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    int late = 0;
    check(cudaMemcpy(&late, meeting_.late, sizeof late, cudaMemcpyDeviceToHost), "cudaMemcpy");
    if (late) fail("a block waited too long for another, or read what was not sent");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return milliseconds * 1e3;
  }

  // The cost of one more repetition, in microseconds.
  std::vector<double> per_repeat(int few, int many, const std::function<void(int)>& enqueue) {
    std::vector<double> samples;
    for (int i = -1; i < kRounds; ++i) {  // the first round loads what there is to load
      const double less = device_us([&] { enqueue(few); });
      const double more = device_us([&] { enqueue(many); });
      if (i >= 0) samples.push_back((more - less) / (many - few));
    }
    return samples;
  }

  // From a call on the host to the end of what it enqueued, seen by the host.
  std::vector<double> host_times(const std::function<void()>& enqueue) {
    using clock = std::chrono::steady_clock;
    std::vector<double> samples;
    for (int i = -20; i < 10 * kRounds; ++i) {
      check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
      const auto start = clock::now();
      enqueue();
      check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
      const std::chrono::duration<double, std::micro> took = clock::now() - start;
      if (i >= 0) samples.push_back(took.count());
    }
    return samples;
  }

  template <Way kWay>
  void grid_meeting(const char* name, int blocks) {
    const std::string about = with(with(named(name), "blocks", int64_t{blocks}), "threads", int64_t{kThreads});
    int fit = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, meet_kernel<kWay>, kThreads, 0), "occupancy");
    if (fit * gpu_.multiProcessorCount < blocks) return report_.add_error(about, cudaErrorCooperativeLaunchTooLarge);
    report_.add(about, "us", per_repeat(200, 2200, [&](int rounds) {
                  void* arguments[] = {&rounds, &meeting_};
                  const void* kernel = reinterpret_cast<const void*>(meet_kernel<kWay>);
                  check(cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(kThreads), arguments, 0, stream_), name);
                }));
  }

  static cudaLaunchAttribute cluster_of(int blocks) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    return attribute;
  }

  cudaLaunchConfig_t configured(int blocks, cudaLaunchAttribute* attribute, size_t shared) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    config.attrs = attribute;
    config.numAttrs = 1;
    return config;
  }

  template <class Kernel>
  static cudaError_t allow(Kernel kernel, int cluster, int shared) {
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (status == cudaSuccess && cluster > 8)
      status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return status;
  }

  // As many clusters as run at once, each for itself.
  void cluster_meeting(int cluster) {
    std::string about = with(with(named("cluster_barrier"), "cluster", int64_t{cluster}), "threads", int64_t{kThreads});
    cudaLaunchAttribute attribute = cluster_of(cluster);
    cudaLaunchConfig_t config = configured(cluster, &attribute, 0);
    int count = 0;
    cudaError_t status = allow(meet_kernel<Way::cluster>, cluster, 0);
    if (status == cudaSuccess) status = cudaOccupancyMaxActiveClusters(&count, meet_kernel<Way::cluster>, &config);
    if (status == cudaSuccess && count == 0) status = cudaErrorInvalidClusterSize;
    if (status != cudaSuccess) return report_.add_error(about, status);
    config.gridDim = dim3(std::min(count, gpu_.multiProcessorCount / cluster) * cluster);
    about = with(about, "blocks", int64_t{config.gridDim.x});
    report_.add(about, "us", per_repeat(200, 2200, [&](int rounds) {
                  check(cudaLaunchKernelEx(&config, meet_kernel<Way::cluster>, rounds, meeting_), "cluster launch");
                }));
  }

  // As many clusters of 8 as the persistent kernel has. The data fits in L2.
  void copying_meeting(int order) {
    constexpr int kBlocks = 96;
    const std::string about = with(with(named("cluster_copies"), "order", kOrders[order]), "kB", kInFlight / 1024);
    char* data;
    check(cudaMalloc(&data, size_t{kBlocks} * kInFlight), "cudaMalloc");
    check(cudaMemset(data, 1, size_t{kBlocks} * kInFlight), "cudaMemset");
    cudaLaunchAttribute attribute = cluster_of(8);
    cudaLaunchConfig_t config = configured(kBlocks, &attribute, kInFlight);
    const cudaError_t status = allow(copying_kernel, 8, kInFlight);
    if (status != cudaSuccess) {
      report_.add_error(about, status);
    } else {
      report_.add(about, "us", per_repeat(100, 1100, [&](int rounds) {
                    check(cudaLaunchKernelEx(&config, copying_kernel, rounds, static_cast<const char*>(data), order),
                          "launch of copies");
                  }));
    }
    check(cudaFree(data), "cudaFree");
  }

  // So many kernels one after another; with `overlap` each may start while the one before still runs.
  cudaGraphExec_t chain(void (*kernel)(), bool overlap, int blocks, int nodes) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = configured(blocks, &attribute, 0);
    config.numAttrs = overlap;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int i = 0; i < nodes; ++i) check(cudaLaunchKernelEx(&config, kernel), "launch into a graph");
    cudaGraph_t graph;
    check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    return instantiated(graph);
  }

  static cudaGraphExec_t instantiated(cudaGraph_t graph) {
    cudaGraphExec_t made;
    check(cudaGraphInstantiate(&made, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    return made;
  }

  void graph_nodes(const char* name, void (*kernel)(), bool overlap, int blocks) {
    constexpr int kFew = 20, kMany = 220;
    cudaGraphExec_t few = chain(kernel, overlap, blocks, kFew), many = chain(kernel, overlap, blocks, kMany);
    std::string about = with(named(name), "overlap", int64_t{overlap});
    about = with(with(about, "blocks", int64_t{blocks}), "threads", int64_t{kThreads});
    report_.add(about, "us", per_repeat(kFew, kMany, [&](int nodes) {
                  check(cudaGraphLaunch(nodes == kFew ? few : many, stream_), "cudaGraphLaunch");
                }));
    check(cudaGraphExecDestroy(few), "cudaGraphExecDestroy");
    check(cudaGraphExecDestroy(many), "cudaGraphExecDestroy");
  }

  // A loop in a graph, of one kernel that says whether it goes on.
  void while_node() {
    cudaGraph_t graph;
    check(cudaGraphCreate(&graph, 0), "cudaGraphCreate");
    cudaGraphConditionalHandle again;
    check(cudaGraphConditionalHandleCreate(&again, graph, 1, cudaGraphCondAssignDefault), "conditional handle");
    cudaGraphNodeParams loop = {};
    loop.type = cudaGraphNodeTypeConditional;
    loop.conditional.handle = again;
    loop.conditional.type = cudaGraphCondTypeWhile;
    loop.conditional.size = 1;
    cudaGraphNode_t node;
#if CUDART_VERSION >= 13000
    check(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &loop), "a conditional node");
#else
    check(cudaGraphAddNode(&node, graph, nullptr, 0, &loop), "a conditional node");
#endif
    void* arguments[] = {&again, &left_};
    cudaKernelNodeParams kernel = {};
    kernel.func = reinterpret_cast<void*>(count_down_kernel);
    kernel.gridDim = kernel.blockDim = dim3(1);
    kernel.kernelParams = arguments;
    check(cudaGraphAddKernelNode(&node, loop.conditional.phGraph_out[0], nullptr, 0, &kernel), "a node of the body");
    cudaGraphExec_t made = instantiated(graph);
    report_.add(named("while_node_iteration"), "us", per_repeat(100, 1100, [&](int rounds) {
                  check(cudaMemcpyAsync(left_, &rounds, sizeof rounds, cudaMemcpyHostToDevice, stream_), "cudaMemcpy");
                  check(cudaGraphLaunch(made, stream_), "cudaGraphLaunch");
                }));
    check(cudaGraphExecDestroy(made), "cudaGraphExecDestroy");
  }

  // A buffer read again and again: 16 GB or so in one launch.
  void read(Load load, const char* data, int64_t megabytes, int64_t megabyte, int eviction) {
    const int64_t chunks = megabytes * megabyte / kChunk;
    const size_t ring = load == Load::registers ? 0 : size_t{kStages} * kChunk;
    const int blocks = gpu_.multiProcessorCount * (load == Load::registers ? 8 : 2);
    const int count = static_cast<int>(16000 * megabyte / kChunk / blocks);
    constexpr cudaFuncAttribute kShared = cudaFuncAttributeMaxDynamicSharedMemorySize;
    check(cudaFuncSetAttribute(read_async_kernel, kShared, kStages * kChunk), "cudaFuncSetAttribute");
    check(cudaFuncSetAttribute(read_bulk_kernel, kShared, kStages * kChunk), "cudaFuncSetAttribute");
    check(cudaCtxResetPersistingL2Cache(), "cudaCtxResetPersistingL2Cache");  // what reads before this made stay
    std::vector<double> samples;
    for (int i = -1; i < kRounds; ++i) {
      const double took = device_us([&] {
        if (load == Load::registers) {
          read_registers_kernel<<<blocks, kThreads, 0, stream_>>>(data, chunks, count, eviction, out_);
        } else if (load == Load::async) {
          read_async_kernel<<<blocks, kThreads, ring, stream_>>>(data, chunks, count, eviction, out_);
        } else {
          read_bulk_kernel<<<blocks, 32, ring, stream_>>>(data, chunks, count, eviction, out_, meeting_.late);
        }
      });
      if (i >= 0) samples.push_back(double(count) * blocks * kChunk / took / 1e3);
    }
    const char* names[] = {"ld.global.nc.v4", "cp.async", "cp.async.bulk"};
    std::string about = with(named("read"), "by", names[static_cast<int>(load)]);
    report_.add(with(with(about, "megabytes", megabytes), "eviction", kEvictions[eviction]), "GB/s", samples);
  }

  cudaDeviceProp gpu_;
  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
  char* memory_;
  Meeting meeting_;
  int* left_;
  unsigned* out_;
  Report report_;
};

}  // namespace

int main(int argc, char** argv) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0)
    fail(std::string("needs a GPU: ") + (status == cudaSuccess ? "there is none" : cudaGetErrorString(status)));
  std::FILE* file = argc > 1 ? std::fopen(argv[1], "a") : nullptr;
  if (argc > 1 && !file) fail(std::string("cannot write ") + argv[1]);
  Probe probe(file);
  probe.launches();
  probe.meetings();
  probe.graphs();
  probe.clusters();
  probe.reads();
  return 0;
}
