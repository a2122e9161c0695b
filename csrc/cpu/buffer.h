// Owned, 64-byte aligned memory; large buffers ask for huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "platform.h"

namespace gitfast::cpu {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) : data_(bytes > 0 ? allocate(bytes) : nullptr), bytes_(bytes) {}
  ~Buffer() {
    if (data_) release(data_);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  size_t bytes() const { return bytes_; }
  float* floats() { return static_cast<float*>(data_); }
  const float* floats() const { return static_cast<const float*>(data_); }
  uint32_t* words() { return static_cast<uint32_t*>(data_); }
  const uint32_t* words() const { return static_cast<const uint32_t*>(data_); }
  void* data() { return data_; }
  const void* data() const { return data_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace gitfast::cpu
