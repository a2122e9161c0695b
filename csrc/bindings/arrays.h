// Arrays of Python and TensorView: views in, owned arrays out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "cpu/buffer.h"
#include "dlpack.h"
#include "tensor.h"

namespace gitfast::bindings {

namespace py = pybind11;

inline void check_alignment(const TensorView& t, const char* name) {
  if (reinterpret_cast<uintptr_t>(t.data) % dtype_size(t.dtype))
    throw Error(std::string(name) + ": the data is not aligned to its dtype");
}

inline DType dtype_of(const py::array& a, const char* name) {
  struct Known {
    char kind;
    py::ssize_t size;
    DType dtype;
  };
  constexpr Known kKnown[] = {{'f', 4, DType::f32}, {'f', 2, DType::f16}, {'i', 1, DType::i8},
                              {'u', 1, DType::u8},  {'i', 4, DType::i32}, {'i', 8, DType::i64}};
  for (const Known& known : kKnown)
    if (a.dtype().kind() == known.kind && a.itemsize() == known.size && a.dtype().attr("isnative").cast<bool>())
      return known.dtype;
  throw Error(std::string(name) + ": unsupported dtype " + std::string(py::str(a.dtype())));
}

// A view of an array's memory, which must outlive it.
inline TensorView view_of(const py::array& a, const char* name) {
  TensorView t;
  t.dtype = dtype_of(a, name);
  t.data = const_cast<void*>(a.data());
  if (a.ndim() > TensorView::kMaxDims) throw Error(std::string(name) + ": more than 8 dimensions");
  t.ndim = static_cast<int>(a.ndim());
  const py::ssize_t size = a.itemsize();
  for (int i = 0; i < t.ndim; ++i) {
    if (a.shape(i) > 1 && a.strides(i) % size)
      throw Error(std::string(name) + ": the strides are not a whole number of elements");
    t.shape[i] = a.shape(i);
    t.strides[i] = a.strides(i) / size;
  }
  check_layout(t, name);
  check_alignment(t, name);
  return t;
}

inline std::string type_name(const py::handle& object) {
  return py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>();
}

// A value for an error message: as Python writes it where that is short, else its type. Python refuses to write an
// integer of 5,000 digits, and a list may hold millions.
inline std::string shown(const py::handle& value) {
  constexpr Py_ssize_t kMaxBytes = 200;
  const py::object text = py::reinterpret_steal<py::object>(PyObject_Repr(value.ptr()));
  Py_ssize_t size = 0;
  const char* bytes = text ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (bytes && size <= kMaxBytes) return std::string(bytes, size);
  PyErr_Clear();
  return "a value of type " + type_name(value);
}

inline py::array as_array(const py::handle& object, const char* name) {
  if (!py::isinstance<py::array>(object))
    throw Error(std::string(name) + ": expected a numpy array, got " + type_name(object));
  return py::reinterpret_borrow<py::array>(object);
}

// An array passed from Python: a numpy array or anything that speaks DLPack. Keeps its memory alive.
class Array {
 public:
  Array(const py::handle& object, const char* name) : name_(name) {
    if (py::isinstance<py::array>(object)) {
      numpy_ = py::reinterpret_borrow<py::array>(object);
      view_ = view_of(numpy_, name);
    } else if (py::hasattr(object, "__dlpack__")) {
      dlpack_ = DlpackTensor(object, name);
      view_ = dlpack_.view();
      check_alignment(view_, name);
    } else {
      throw Error(std::string(name) + ": expected an array, got " + type_name(object));
    }
  }

  const TensorView& view() const { return view_; }
  Check check() const { return Check(view_, name_); }
  // float32 in the memory of this process.
  Check floats() const { return check().device(Device::cpu).dtype(DType::f32); }
  const float* data() const { return view_.ptr<float>(); }

 private:
  const char* name_;
  py::array numpy_;
  DlpackTensor dlpack_;
  TensorView view_;
};

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
