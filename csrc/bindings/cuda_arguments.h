// Arguments of the CUDA kernels, read by name. A kernel's arguments are declared once: its struct (csrc/cuda) and the
// one function here that fills it, each field with its name, dtype and shape.
#pragma once

#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "arrays.h"

struct CUstream_st;

namespace gitfast::bindings {

// Keyword arguments of one call, or a dict of them. Holds the memory of its arrays as long as it lives. Errors name the
// argument; finish() also names arguments that nobody has read.
class Arguments {
 public:
  // The array `first` decides the dtype and the device of the others.
  Arguments(Device kind, const py::dict& given, const char* first);
  // A dict within another call, such as a layer: of the same dtype and device.
  Arguments(const Arguments& outer, const py::dict& given)
      : given_(given), kind_(outer.kind_), dtype_(outer.dtype_), device_(outer.device_) {}
  Arguments(Arguments&&) = default;

  // True for an argument that is given and not None.
  bool has(const std::string& name) const;
  // Throws unless all of the names are given, or none.
  bool has_all_or_none(std::initializer_list<const char*> names) const;

  // Dense arrays.
  void* dense(const std::string& name, DType dtype, std::initializer_list<Dim*> shape);
  void* dense(const std::string& name, std::initializer_list<Dim*> shape) { return dense(name, dtype_, shape); }
  int32_t* ints(const std::string& name, std::initializer_list<Dim*> shape) {
    return static_cast<int32_t*>(dense(name, DType::i32, shape));
  }
  int64_t* longs(const std::string& name, std::initializer_list<Dim*> shape) {
    return static_cast<int64_t*>(dense(name, DType::i64, shape));
  }
  float* floats(const std::string& name, std::initializer_list<Dim*> shape) {
    return static_cast<float*>(dense(name, DType::f32, shape));
  }
  // An array that the host and the device read at one address: int32 in (pinned) memory of the host.
  int32_t* host_ints(const std::string& name, std::initializer_list<Dim*> shape);
  // Dense memory of at least so many elements of T.
  template <class T>
  T* workspace(const std::string& name, int64_t needed) {
    constexpr DType kDType = std::is_same_v<T, float> ? DType::f32 : DType::u8;
    Dim got("elements");
    void* data = dense(name, kDType, {&got});
    if (got.value < needed)
      throw Error(name + ": expected at least " + std::to_string(needed) +
                  (kDType == DType::f32 ? " floats" : " bytes") + ", got " + std::to_string(got.value));
    return static_cast<T*>(data);
  }
  // Rows (count, extent) whose elements are dense and whose starts are `stride` elements apart.
  void* rows(const std::string& name, Dim& count, Dim& extent, int64_t& stride);
  // The same for rows that are written: they must not share elements.
  void* rows_out(const std::string& name, Dim& count, Dim& extent, int64_t& stride);
  // Rows (R, H, head_dim), each dense.
  void* head_rows(const std::string& name, Dim& R, Dim& H, Dim& head_dim, int64_t& stride);
  // The dtype of an array whose kernel takes several.
  DType dtype_of(const std::string& name) { return array(name).view().dtype; }

  template <class T>
  T value(const std::string& name) {
    return get(name).cast<T>();
  }
  template <class T>
  T value(const std::string& name, T otherwise) {
    return has(name) ? value<T>(name) : otherwise;
  }
  CUstream_st* stream() { return reinterpret_cast<CUstream_st*>(value<uintptr_t>("stream", 0)); }
  // A dict of arguments within these.
  Arguments group(const std::string& name) { return Arguments(*this, value<py::dict>(name)); }
  void finish() const;

  DType dtype() const { return dtype_; }
  int device() const { return device_; }

 private:
  py::object get(const std::string& name);
  const Array& array(const std::string& name);
  const Array& checked(const std::string& name, DType dtype, std::initializer_list<Dim*> shape);

  struct Kept {
    std::string name;
    std::unique_ptr<Array> array;
  };

  py::dict given_;
  Device kind_;
  DType dtype_ = DType::f32;
  int device_ = 0;
  std::vector<std::unique_ptr<Kept>> kept_;
  mutable std::set<std::string> read_;
};

}  // namespace gitfast::bindings
