// DLPack, the exchange of tensors between libraries without a copy (https://dmlc.github.io/dlpack): consumer side.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "tensor.h"

namespace gitfast::bindings {

namespace py = pybind11;

// The layout the protocol fixes for capsules named "dltensor".
struct DlManagedTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t dtype_code, dtype_bits;
  uint16_t dtype_lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null: contiguous
  uint64_t byte_offset;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

class DlpackTensor {
 public:
  DlpackTensor() = default;

  // Takes the tensor `object.__dlpack__()` offers. Throws Error naming what cannot be read.
  DlpackTensor(const py::handle& object, const char* name) {
    const py::object capsule = offered(object);
    if (!PyCapsule_IsValid(capsule.ptr(), kName)) throw Error(std::string(name) + ": __dlpack__ gave no tensor");
    tensor_ = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kName));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");  // from here on the deleter is ours to call
    try {
      read(name);
    } catch (...) {
      release();
      throw;
    }
  }
  ~DlpackTensor() { release(); }
  DlpackTensor(DlpackTensor&& other) noexcept { swap(other); }
  DlpackTensor& operator=(DlpackTensor&& other) noexcept {
    swap(other);
    return *this;
  }

  const TensorView& view() const { return view_; }

 private:
  static constexpr const char* kName = "dltensor";

  enum DeviceType { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

  // Stream -1 is "do not synchronize": who calls a kernel orders its stream, and a wait would break a graph's capture.
  static py::object offered(const py::handle& object) {
    if (py::hasattr(object, "__dlpack_device__")) {
      const int type = object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>();
      if (type == kCuda || type == kCudaManaged) return object.attr("__dlpack__")(py::arg("stream") = -1);
    }
    return object.attr("__dlpack__")();
  }

  void read(const char* name) {
    view_.dtype = dtype(name);
    view_.device = device(name);
    view_.device_index = tensor_->device_id;
    view_.data = static_cast<char*>(tensor_->data) + tensor_->byte_offset;
    view_.ndim = tensor_->ndim;
    if (view_.ndim < 0)
      throw Error(std::string(name) + ": expected 0 or more dimensions, got " + std::to_string(view_.ndim));
    if (view_.ndim > TensorView::kMaxDims) throw Error(std::string(name) + ": more than 8 dimensions");
    if (view_.ndim > 0 && !tensor_->shape) throw Error(std::string(name) + ": __dlpack__ gave no shape");
    for (int i = 0; i < view_.ndim; ++i) {
      view_.shape[i] = tensor_->shape[i];
      view_.strides[i] = tensor_->strides ? tensor_->strides[i] : 0;
    }
    check_layout(view_, name);
    if (!tensor_->strides) {
      int64_t dense = 1;
      for (int i = view_.ndim - 1; i >= 0; --i) {
        view_.strides[i] = dense;
        dense *= view_.shape[i];
      }
    }
    if (!tensor_->data && view_.numel() > 0) throw Error(std::string(name) + ": __dlpack__ gave no memory");
  }

  DType dtype(const char* name) const {
    enum Code { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4 };
    const int code = tensor_->dtype_code, bits = tensor_->dtype_bits;
    if (tensor_->dtype_lanes == 1) {
      if (code == kFloat && bits == 32) return DType::f32;
      if (code == kFloat && bits == 16) return DType::f16;
      if (code == kBfloat && bits == 16) return DType::bf16;
      if (code == kInt && bits == 8) return DType::i8;
      if (code == kUint && bits == 8) return DType::u8;
      if (code == kInt && bits == 32) return DType::i32;
      if (code == kInt && bits == 64) return DType::i64;
    }
    throw Error(std::string(name) + ": unsupported dtype (DLPack code " + std::to_string(code) + ", " +
                std::to_string(bits) + " bits)");
  }

  Device device(const char* name) const {
    const int type = tensor_->device_type;
    if (type == kCpu || type == kCudaHost) return Device::cpu;
    if (type == kCuda || type == kCudaManaged) return Device::cuda;
    throw Error(std::string(name) + ": unsupported device (DLPack type " + std::to_string(type) + ")");
  }

  void release() {
    if (tensor_ && tensor_->deleter) tensor_->deleter(tensor_);
    tensor_ = nullptr;
  }
  void swap(DlpackTensor& other) noexcept {
    std::swap(tensor_, other.tensor_);
    std::swap(view_, other.view_);
  }

  DlManagedTensor* tensor_ = nullptr;
  TensorView view_;
};

}  // namespace gitfast::bindings
