// What every question of gpu_probe.cu needs: errors, lines of JSON, times on the device and on the host, launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace gpu_probe {

constexpr int kRounds = 9, kThreads = 256;
constexpr unsigned kMostPolls = 1u << 20;  // a second or so

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "gpu_probe: %s\n", message.c_str());
  std::exit(1);
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(status));
}

inline __device__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

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

inline std::string named(const char* name) { return std::string("\"name\": \"") + name + "\""; }
inline std::string with(const std::string& about, const char* key, int64_t value) {
  return about + ", \"" + key + "\": " + std::to_string(value);
}
inline std::string with(const std::string& about, const char* key, const char* value) {
  return about + ", \"" + key + "\": \"" + value + "\"";
}

// A device, and how work on it is timed.
class Probe {
 public:
  explicit Probe(std::FILE* file) : report(file) {
    check(cudaGetDeviceProperties(&gpu, 0), "cudaGetDeviceProperties");
    if (gpu.major < 9) fail(std::string(gpu.name) + ": expected compute capability 9.0 or later");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    check(cudaMalloc(&memory_, kAhead + kScratch), "cudaMalloc");
    check(cudaMemset(memory_, 0, kAhead + kScratch), "cudaMemset");
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    std::string about = with(with(named("device"), "gpu", gpu.name), "multiprocessors", gpu.multiProcessorCount);
    about = with(with(about, "l2_bytes", gpu.l2CacheSize), "driver", int64_t{driver});
    report.line(with(about, "runtime", int64_t{runtime}));
  }

  // Where a kernel says that a wait was given up, or that a value was not the one sent.
  int* late() const { return reinterpret_cast<int*>(memory_); }
  // 64 KB for kernels, zeros whenever work begins that is timed.
  char* scratch() const { return memory_ + kAhead; }

  double device_us(const std::function<void()>& enqueue) {
    check(cudaMemsetAsync(memory_, 0, kAhead + kScratch, stream), "cudaMemset");
    check(cudaEventRecord(begin_, stream), "cudaEventRecord");
    enqueue();
    check(cudaGetLastError(), "launch");
    check(cudaEventRecord(end_, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    int was_late = 0;
    check(cudaMemcpy(&was_late, late(), sizeof was_late, cudaMemcpyDeviceToHost), "cudaMemcpy");
    if (was_late) fail("a block waited too long for another, or read what was not sent");
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
      check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
      const auto start = clock::now();
      enqueue();
      check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
      const std::chrono::duration<double, std::micro> took = clock::now() - start;
      if (i >= 0) samples.push_back(took.count());
    }
    return samples;
  }

  cudaDeviceProp gpu;
  cudaStream_t stream;
  Report report;

 private:
  static constexpr size_t kAhead = 256, kScratch = 64 * 1024;

  cudaEvent_t begin_, end_;
  char* memory_;
};

inline cudaLaunchAttribute cluster_of(int blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return attribute;
}

inline cudaLaunchConfig_t configured(const Probe& probe, int blocks, cudaLaunchAttribute* attribute, size_t shared) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = probe.stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

template <class Kernel>
cudaError_t allow(Kernel kernel, int cluster, int shared) {
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status == cudaSuccess && cluster > 8)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return status;
}

}  // namespace gpu_probe
