// Owned, 64-byte aligned memory; large buffers ask for huge pages.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace gitfast::cpu {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    const size_t align = bytes >= kHugePage ? kHugePage : 64;
    data_ = std::aligned_alloc(align, (bytes + align - 1) / align * align);
    if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (align == kHugePage) madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // whole ones, no waste
#endif
  }
  ~Buffer() { std::free(data_); }
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
  static constexpr size_t kHugePage = size_t{2} << 20;
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace gitfast::cpu
