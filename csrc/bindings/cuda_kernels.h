// The CUDA kernels as Python functions: of device arrays in the module, of host arrays in their emulation.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "cuda/norm.h"

namespace gitfast::bindings {

// Rows (R, width) whose elements are dense; gives their stride.
inline int64_t check_rows(const Array& rows, const char* name, Device device, DType dtype, Dim& R, Dim& width) {
  rows.check().device(device).dtype(dtype).shape({&R, &width});
  const TensorView& view = rows.view();
  if (view.shape[1] > 1 && view.strides[1] != 1) throw Error(std::string(name) + ": the elements of a row are strided");
  return view.strides[0];
}

inline void add_layer_norm(Device device, const py::object& x, const py::object& bias, const py::object& residual,
                           const py::object& gamma, const py::object& beta, float eps, const py::object& out,
                           uintptr_t stream) {
  Dim R("R"), width("D");
  cuda::AddLayerNorm args;
  const Array x_array(x, "x");
  args.dtype = x_array.view().dtype;
  const auto vector = [&](const Array& array) {
    array.check().device(device).dtype(args.dtype).shape({&width}).contiguous();
    return array.view().data;
  };
  args.x_stride = check_rows(x_array, "x", device, args.dtype, R, width);
  const Array gamma_array(gamma, "gamma"), beta_array(beta, "beta"), out_array(out, "out");
  args.gamma = vector(gamma_array);
  args.beta = vector(beta_array);
  args.out_stride = check_rows(out_array, "out", device, args.dtype, R, width);
  std::optional<Array> bias_array, residual_array;
  if (!bias.is_none()) args.bias = vector(bias_array.emplace(bias, "bias"));
  if (!residual.is_none()) {
    residual_array.emplace(residual, "residual");
    args.residual_stride = check_rows(*residual_array, "residual", device, args.dtype, R, width);
    args.residual = residual_array->view().data;
  }
  if (R.value > 1 && args.out_stride < width.value) throw Error("out: its rows overlap");
  args.rows = R.value;
  args.width = width.value;
  args.x = x_array.view().data;
  args.out = out_array.view().data;
  args.eps = eps;
  py::gil_scoped_release release;
  cuda::add_layer_norm(args, reinterpret_cast<CUstream_st*>(stream));
}

inline void bind_cuda_kernels(py::module_& m, Device device) {
  m.def(
      "add_layer_norm",
      [device](const py::object& x, const py::object& bias, const py::object& residual, const py::object& gamma,
               const py::object& beta, float eps, const py::object& out,
               uintptr_t stream) { add_layer_norm(device, x, bias, residual, gamma, beta, eps, out, stream); },
      py::arg("x"), py::arg("bias"), py::arg("residual"), py::arg("gamma"), py::arg("beta"), py::arg("eps"),
      py::arg("out"), py::arg("stream") = 0);
}

}  // namespace gitfast::bindings
