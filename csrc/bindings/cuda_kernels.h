// The CUDA kernels as Python functions: of device arrays in the module, of host arrays in their emulation.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "cuda/activation.h"
#include "cuda/norm.h"

namespace gitfast::bindings {

// What the arrays of one call have in common; the first array decides.
struct Common {
  Device kind;
  DType dtype;
  int device;
  Dim R{"R"}, width{"D"};

  Common(Device kind, const Array& first) : kind(kind), dtype(first.view().dtype), device(first.view().device_index) {}

  void check(const Array& array, const char* name, std::initializer_list<Dim*> shape) const {
    array.check().device(kind).dtype(dtype).shape(shape);
    if (array.view().device_index != device)
      throw Error(std::string(name) + ": expected a tensor of CUDA device " + std::to_string(device) + ", got device " +
                  std::to_string(array.view().device_index));
  }
  void* vector(const Array& array, const char* name) {
    check(array, name, {&width});
    array.check().contiguous();
    return array.view().data;
  }
  // Rows (R, D) whose elements are dense; gives their stride.
  void* rows(const Array& array, const char* name, int64_t& stride) {
    check(array, name, {&R, &width});
    const TensorView& view = array.view();
    if (view.shape[1] > 1 && view.strides[1] != 1)
      throw Error(std::string(name) + ": the elements of a row are strided");
    stride = view.strides[0];
    return view.data;
  }
};

inline void add_layer_norm(Device kind, const py::object& x, const py::object& bias, const py::object& residual,
                           const py::object& gamma, const py::object& beta, float eps, const py::object& out,
                           uintptr_t stream) {
  const Array x_array(x, "x"), gamma_array(gamma, "gamma"), beta_array(beta, "beta"), out_array(out, "out");
  std::optional<Array> bias_array, residual_array;
  Common common(kind, x_array);
  cuda::AddLayerNorm args;
  args.x = common.rows(x_array, "x", args.x_stride);
  args.gamma = common.vector(gamma_array, "gamma");
  args.beta = common.vector(beta_array, "beta");
  args.out = common.rows(out_array, "out", args.out_stride);
  if (!bias.is_none()) args.bias = common.vector(bias_array.emplace(bias, "bias"), "bias");
  if (!residual.is_none())
    args.residual = common.rows(residual_array.emplace(residual, "residual"), "residual", args.residual_stride);
  if (common.R.value > 1 && args.out_stride < common.width.value) throw Error("out: its rows overlap");
  args.dtype = common.dtype;
  args.device = common.device;
  args.rows = common.R.value;
  args.width = common.width.value;
  args.eps = eps;
  py::gil_scoped_release release;
  cuda::add_layer_norm(args, reinterpret_cast<CUstream_st*>(stream));
}

inline void bias_activation(Device kind, cuda::Activation activation, const py::object& x, const py::object& bias,
                            const py::object& out, uintptr_t stream) {
  const Array x_array(x, "x"), out_array(out, "out");
  std::optional<Array> bias_array;
  Common common(kind, x_array);
  cuda::BiasActivation args;
  args.activation = activation;
  args.x = common.rows(x_array, "x", args.x_stride);
  args.out = common.rows(out_array, "out", args.out_stride);
  if (!bias.is_none()) args.bias = common.vector(bias_array.emplace(bias, "bias"), "bias");
  if (common.R.value > 1 && args.out_stride < common.width.value) throw Error("out: its rows overlap");
  args.dtype = common.dtype;
  args.device = common.device;
  args.rows = common.R.value;
  args.width = common.width.value;
  py::gil_scoped_release release;
  cuda::bias_activation(args, reinterpret_cast<CUstream_st*>(stream));
}

inline void bind_bias_activation(py::module_& m, Device device, const char* name, cuda::Activation activation) {
  m.def(
      name,
      [device, activation](const py::object& x, const py::object& bias, const py::object& out, uintptr_t stream) {
        bias_activation(device, activation, x, bias, out, stream);
      },
      py::arg("x"), py::arg("bias"), py::arg("out"), py::arg("stream") = 0);
}

inline void bind_cuda_kernels(py::module_& m, Device device) {
  m.def(
      "add_layer_norm",
      [device](const py::object& x, const py::object& bias, const py::object& residual, const py::object& gamma,
               const py::object& beta, float eps, const py::object& out,
               uintptr_t stream) { add_layer_norm(device, x, bias, residual, gamma, beta, eps, out, stream); },
      py::arg("x"), py::arg("bias"), py::arg("residual"), py::arg("gamma"), py::arg("beta"), py::arg("eps"),
      py::arg("out"), py::arg("stream") = 0);
  bind_bias_activation(m, device, "bias_gelu", cuda::Activation::gelu);
  bind_bias_activation(m, device, "bias_quick_gelu", cuda::Activation::quick_gelu);
}

}  // namespace gitfast::bindings
