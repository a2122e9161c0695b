// The CUDA kernels that multiply by a packed weight, as Python functions.
#pragma once

#include <optional>

#include "cuda/linear.h"
#include "cuda_arguments.h"

namespace gitfast::bindings {

// (tiles, steps, 8, D) of 64 bytes along D, and the scales of weights of 8 bits, for that many columns.
inline cuda::PackedWeight packed_weight(const Common& common, const Array& array, const std::optional<Array>& scales,
                                        Dim& columns) {
  cuda::PackedWeight weight;
  weight.dtype = array.view().dtype;
  weight.columns = columns.value;
  Dim steps("steps");
  Dim tiles((columns.value + 7) / 8), eight(8), depth(64 / static_cast<int64_t>(dtype_size(weight.dtype)));
  weight.data = common.dense(array, "weight", weight.dtype, {&tiles, &steps, &eight, &depth});
  weight.depth = steps.value * depth.value;
  if (scales) weight.scales = static_cast<const float*>(common.dense(*scales, "scales", DType::f32, {&columns}));
  return weight;
}

inline cuda::Activation activation_named(const std::string& name) {
  if (name == "none") return cuda::Activation::none;
  if (name == "gelu") return cuda::Activation::gelu;
  if (name == "quick_gelu") return cuda::Activation::quick_gelu;
  throw Error("activation: expected none, gelu or quick_gelu, got " + name);
}

inline std::optional<Array> optional_array(const py::object& object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return Array(object, name);
}

inline void linear(Device kind, const py::object& x, const py::object& weight, const py::object& scales,
                   const py::object& bias, const std::string& activation, const py::object& residual,
                   const py::object& out, bool overlap, uintptr_t stream) {
  const Array x_array(x, "x"), weight_array(weight, "weight"), out_array(out, "out");
  const auto scales_array = optional_array(scales, "scales"), bias_array = optional_array(bias, "bias"),
             residual_array = optional_array(residual, "residual");
  Common common(kind, x_array);
  cuda::Linear args;
  Dim columns("N");
  args.out = common.rows(out_array, "out", common.dtype, common.R, columns, args.out_stride);
  check_apart("out", common.R, columns, args.out_stride);
  args.weight = packed_weight(common, weight_array, scales_array, columns);
  Dim depth(args.weight.depth);
  args.x = common.rows(x_array, "x", common.dtype, common.R, depth, args.x_stride);
  if (bias_array) args.bias = common.dense(*bias_array, "bias", common.dtype, {&columns});
  if (residual_array)
    args.residual = common.rows(*residual_array, "residual", common.dtype, common.R, columns, args.residual_stride);
  args.dtype = common.dtype;
  args.device = common.device;
  args.rows = common.R.value;
  args.activation = activation_named(activation);
  args.overlap = overlap;
  py::gil_scoped_release release;
  cuda::linear(args, reinterpret_cast<CUstream_st*>(stream));
}

inline void bind_linear(py::module_& m, Device device) {
  m.def(
      "linear",
      [device](const py::object& x, const py::object& weight, const py::object& scales, const py::object& bias,
               const std::string& activation, const py::object& residual, const py::object& out, bool overlap,
               uintptr_t stream) {
        linear(device, x, weight, scales, bias, activation, residual, out, overlap, stream);
      },
      py::arg("x"), py::arg("weight"), py::arg("scales"), py::arg("bias"), py::arg("activation"), py::arg("residual"),
      py::arg("out"), py::arg("overlap") = false, py::arg("stream") = 0);
}

}  // namespace gitfast::bindings
