// What all CUDA kernels ask of the arrays they are called with.
#pragma once

#include "arrays.h"

namespace gitfast::bindings {

// What the arrays of one call have in common; the first array decides.
struct Common {
  Device kind;
  DType dtype;
  int device;
  Dim R{"R"}, width{"D"};

  Common(Device kind, const Array& first) : kind(kind), dtype(first.view().dtype), device(first.view().device_index) {}

  void check(const Array& array, const char* name, DType want, std::initializer_list<Dim*> shape) const {
    array.check().device(kind).dtype(want).shape(shape);
    if (array.view().device_index != device)
      throw Error(std::string(name) + ": expected a tensor of CUDA device " + std::to_string(device) + ", got device " +
                  std::to_string(array.view().device_index));
  }
  // Of this dtype and shape, without gaps.
  void* dense(const Array& array, const char* name, DType want, std::initializer_list<Dim*> shape) const {
    check(array, name, want, shape);
    array.check().contiguous();
    return array.view().data;
  }
  void* vector(const Array& array, const char* name) { return dense(array, name, dtype, {&width}); }
  // Rows (count, extent) whose elements are dense; gives their stride.
  void* rows(const Array& array, const char* name, DType want, Dim& count, Dim& extent, int64_t& stride) const {
    check(array, name, want, {&count, &extent});
    const TensorView& view = array.view();
    if (view.shape[1] > 1 && view.strides[1] != 1)
      throw Error(std::string(name) + ": the elements of a row are strided");
    stride = view.strides[0];
    return view.data;
  }
  void* rows(const Array& array, const char* name, int64_t& stride) {
    return rows(array, name, dtype, R, width, stride);
  }
};

// Memory of so many elements must suffice.
inline void check_room(const char* name, const Dim& got, int64_t needed, const char* unit) {
  if (got.value < needed)
    throw Error(std::string(name) + ": expected at least " + std::to_string(needed) + " " + unit + ", got " +
                std::to_string(got.value));
}

// Rows that are written must not share elements.
inline void check_apart(const char* name, const Dim& count, const Dim& extent, int64_t stride) {
  if (count.value > 1 && stride < extent.value) throw Error(std::string(name) + ": its rows overlap");
}

}  // namespace gitfast::bindings
