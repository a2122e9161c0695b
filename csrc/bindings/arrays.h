// NumPy arrays and TensorView: views in, owned arrays out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "cpu/buffer.h"
#include "tensor.h"

namespace gitfast::bindings {

namespace py = pybind11;

// A view of an array's memory, which must outlive it. Throws Error for what the kernels cannot read as it is.
inline TensorView view_of(const py::array& a, const char* name) {
  const std::string where = name;
  TensorView t;
  const char kind = a.dtype().kind();
  const auto size = a.itemsize();
  if (kind == 'f' && size == 4) {
    t.dtype = DType::f32;
  } else if (kind == 'f' && size == 2) {
    t.dtype = DType::f16;
  } else {
    throw Error(where + ": expected float32 or float16, got " + std::string(py::str(a.dtype())));
  }
  if (!a.dtype().attr("isnative").cast<bool>()) throw Error(where + ": expected native byte order");
  if (a.ndim() > TensorView::kMaxDims) throw Error(where + ": more than 8 dimensions");
  t.data = const_cast<void*>(a.data());
  if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(size))
    throw Error(where + ": data is not aligned to its dtype");
  t.ndim = static_cast<int>(a.ndim());
  for (int i = 0; i < t.ndim; ++i) {
    if (a.strides(i) % size) throw Error(where + ": strides are not a whole number of elements");
    t.shape[i] = a.shape(i);
    t.strides[i] = a.strides(i) / size;
  }
  return t;
}

inline py::array as_array(const py::handle& object, const char* name) {
  if (!py::isinstance<py::array>(object))
    throw Error(std::string(name) + ": expected a numpy array, got " +
                std::string(py::str(py::type::handle_of(object).attr("__name__"))));
  return py::reinterpret_borrow<py::array>(object);
}

// A float32 C-contiguous view; anything else is an error, never a silent copy.
inline TensorView floats(const py::array& a, const char* name) {
  const TensorView t = view_of(a, name);
  Check(t, name).dtype(DType::f32).contiguous();
  return t;
}

inline py::array_t<float> empty(std::vector<py::ssize_t> shape) { return py::array_t<float>(std::move(shape)); }

// An array that owns the buffer.
inline py::array_t<float> take(cpu::Buffer buffer, std::vector<py::ssize_t> shape) {
  auto owned = std::make_unique<cpu::Buffer>(std::move(buffer));
  float* data = owned->floats();
  py::capsule owner(owned.release(), [](void* p) { delete static_cast<cpu::Buffer*>(p); });
  return py::array_t<float>(std::move(shape), data, owner);
}

}  // namespace gitfast::bindings
