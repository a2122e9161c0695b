// Helpers of the tests on a device: memory of exact size, random values, and a line per case. Where the kernels are
// emulated (csrc/emulation), memory is the host's.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "cuda/platform.h"

namespace gitfast::cuda {

#ifdef __CUDACC__
inline void* allocate(size_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), "cudaMalloc");
  return data;
}
inline void release(void* data) { cudaFree(data); }
inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
#else
constexpr std::align_val_t kAlignment{256};  // that of cudaMalloc
inline void* allocate(size_t bytes) { return ::operator new(bytes, kAlignment); }
inline void release(void* data) { ::operator delete(data, kAlignment); }
inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
#endif

// Memory of the device of exactly this many elements.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host) : size_(host.size()), data_(allocate(size_ * sizeof(T))) {
    set(host);
  }
  ~DeviceArray() { release(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    copy(values.data(), data_, size_ * sizeof(T));
    return values;
  }
  // As many values as there are.
  void set(const std::vector<T>& host) const { copy(data_, host.data(), size_ * sizeof(T)); }

 private:
  size_t size_;
  void* data_;
};

inline double value(double x) { return x; }
inline float value(float x) { return x; }
inline float value(__half x) { return __half2float(x); }
inline float value(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
std::vector<T> normal(size_t n, unsigned seed, float deviation = 1, float mean = 0) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(mean, deviation);
  std::vector<T> values(n);
  for (T& v : values) v = T(distribution(random));
  return values;
}

// The larger of two errors; one that is no number is larger than all.
inline double worse(double worst, double error) {
  return error <= worst ? worst : std::isnan(error) ? INFINITY : error;
}

inline bool report(const char* name, DType dtype, int a, int b, int c, double error) {
  const bool right = error <= 1;
  std::printf("%-16s %-8s %4d %4d %4d  %.3f of the tolerance%s\n", name, dtype_name(dtype), a, b, c, error,
              right ? "" : ": WRONG");
  return right;
}

inline bool skipped(const char* name) {
  std::printf("%-16s skipped: the device has no clusters of blocks for it\n", name);
  return true;
}

}  // namespace gitfast::cuda
