// The header of every kernel source: CUDA under nvcc, its emulation on the host (csrc/emulation) under a C++ compiler.
//
// Two conventions make one source serve both: launch_kernel starts kernels, GITFAST_SHARED declares shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef __CUDACC__
#define GITFAST_SHARED(type, name)                             \
  extern __shared__ __align__(128) unsigned char name##_raw[]; \
  type* name = reinterpret_cast<type*>(name##_raw)
#else
#include "emulation/emulation.h"
#endif

namespace gitfast::cuda {

// A call of the CUDA runtime failed: becomes RuntimeError in Python.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  const char* name;  // of the kernel, for errors
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
  // May start while the kernel before it in the stream still runs: see wait_for_previous_kernel in cuda/ptx.h.
  bool overlap = false;
  unsigned cluster = 1;  // blocks along x that share a barrier and reach each other's shared memory (cuda/cluster.h)
  bool cooperative = false;  // all blocks run at once, or the launch fails
};

inline std::string describe(const Launch& launch) {
  const auto text = [](dim3 d) { return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z); };
  return std::string(launch.name) + " (grid " + text(launch.grid) + ", block " + text(launch.block) + ", " +
         std::to_string(launch.shared_bytes) + " bytes of shared memory)";
}

#ifdef __CUDACC__
inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next caller of the runtime would take our error for its own
  throw CudaError(what + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

// Makes a device current as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device_ != before_) check(cudaSetDevice(device_), "cudaSetDevice(" + std::to_string(device_) + ")");
  }
  ~DeviceScope() {
    if (device_ != before_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int device_, before_ = 0;
};

// True where kernels of the current device can wait for each other while they run.
inline bool can_overlap() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  return major >= 9;
}

// Bytes of shared memory that a block of the current device may ask for.
inline int most_shared_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

template <class... Parameters, class... Arguments>
void launch_kernel(const Launch& launch, void (*kernel)(Parameters...), Arguments&&... arguments) {
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (launch.shared_bytes > kSharedWithoutAsking) {
    // The limit is the kernel's, not the launch's: one thread must not lower it between another's request and launch.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes()), launch.name);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          launch.name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute attributes[4]{};
  config.attrs = attributes;
  const auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    attributes[config.numAttrs].id = id;
    return attributes[config.numAttrs++].val;
  };
  if (launch.overlap && can_overlap())
    add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (launch.cluster > 1) {
    auto& size = add(cudaLaunchAttributeClusterDimension).clusterDim;
    size.x = launch.cluster;
    size.y = size.z = 1;
    // On as many multiprocessors as there are: blocks that share one share its bandwidth.
    add(cudaLaunchAttributeClusterSchedulingPolicyPreference).clusterSchedulingPolicyPreference =
        cudaClusterSchedulingPolicySpread;
  }
  if (launch.cooperative) add(cudaLaunchAttributeCooperative).cooperative = 1;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (status != cudaSuccess) check(status, describe(launch));
}
#else
struct DeviceScope {
  explicit DeviceScope(int) {}
};

template <class... Parameters, class... Arguments>
void launch_kernel(const Launch& launch, void (*kernel)(Parameters...), Arguments&&... arguments) {
  emulation::launch([&] { kernel(arguments...); },
                    {launch.grid, launch.block, launch.shared_bytes, launch.cluster, launch.cooperative});
}
#endif

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.44269504f;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two neighbours in a register, as tensor cores take them.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float first, float second) {
  const T two[2] = {from_float<T>(first), from_float<T>(second)};
  uint32_t bits;
  memcpy(&bits, two, sizeof bits);
  return bits;
}

// N consecutive elements, aligned to their size: moved by one instruction up to 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T at[N];
};

// True where rows that start here, so many bytes apart, can be moved by vectors of `to` bytes.
inline bool aligned(const void* pointer, int64_t stride_bytes, size_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0 && stride_bytes % static_cast<int64_t>(to) == 0;
}

#ifdef __CUDACC__
template <class V>
__device__ __forceinline__ V load_vec(const V* from) {
  return *from;
}
template <class V>
__device__ __forceinline__ void store_vec(V* to, const V& value) {
  *to = value;
}
#else
template <class V>
V load_vec(const V* from) {
  emulation::check_alignment(from, alignof(V));
  return *from;
}
template <class V>
void store_vec(V* to, const V& value) {
  emulation::check_alignment(to, alignof(V));
  *to = value;
}
#endif

}  // namespace gitfast::cuda
