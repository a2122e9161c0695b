// What a kernel source includes: CUDA under nvcc, its emulation on the host (csrc/emulation) under a C++ compiler.
//
// Two conventions make one source serve both: GITFAST_LAUNCH starts kernels, GITFAST_SHARED declares shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#define GITFAST_SHARED(type, name)                             \
  extern __shared__ __align__(128) unsigned char name##_raw[]; \
  type* name = reinterpret_cast<type*>(name##_raw)
#define GITFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);        \
  ::gitfast::cuda::check(cudaGetLastError(), #kernel)
#else
#include "emulation/emulation.h"
#endif

namespace gitfast::cuda {

// A call of the CUDA runtime failed: becomes RuntimeError in Python.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#ifdef __CUDACC__
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw CudaError(std::string(what) + ": " + cudaGetErrorString(status));
}
#endif

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

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

}  // namespace gitfast::cuda
