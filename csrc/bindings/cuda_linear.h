// The CUDA kernels that multiply by a packed weight, as Python functions.
#pragma once

#include <optional>

#include "cuda/linear.h"
#include "cuda/select.h"
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

inline void head_select(Device kind, const py::object& x, const py::object& weight, const py::object& scales,
                        int64_t vocab_size, const py::object& bias, float temperature, const py::object& tokens,
                        const py::object& log_probs, const py::object& logits, const py::object& keys,
                        const py::object& step, const py::object& drawn, const py::object& drawn_log_probs,
                        const py::object& workspace, bool overlap, uintptr_t stream) {
  const Array x_array(x, "x"), weight_array(weight, "weight"), tokens_array(tokens, "tokens"),
      log_probs_array(log_probs, "log_probs"), workspace_array(workspace, "workspace");
  const auto scales_array = optional_array(scales, "scales"), bias_array = optional_array(bias, "bias"),
             logits_array = optional_array(logits, "logits"), keys_array = optional_array(keys, "keys"),
             step_array = optional_array(step, "step"), drawn_array = optional_array(drawn, "drawn"),
             drawn_log_probs_array = optional_array(drawn_log_probs, "drawn_log_probs");
  if (keys_array.has_value() != step_array.has_value() || keys_array.has_value() != drawn_array.has_value())
    throw Error("keys, step, drawn: expected all or none of them");
  if (drawn_log_probs_array && !drawn_array) throw Error("drawn_log_probs: expected None without drawn");
  Common common(kind, x_array);
  cuda::HeadSelect args;
  Dim columns(vocab_size), choices("choices"), bytes("bytes");
  args.weight = packed_weight(common, weight_array, scales_array, columns);
  Dim depth(args.weight.depth);
  args.x = common.rows(x_array, "x", common.dtype, common.R, depth, args.x_stride);
  if (bias_array) args.bias = common.dense(*bias_array, "bias", common.dtype, {&columns});
  args.tokens = static_cast<int32_t*>(common.dense(tokens_array, "tokens", DType::i32, {&common.R, &choices}));
  args.log_probs = static_cast<float*>(common.dense(log_probs_array, "log_probs", DType::f32, {&common.R, &choices}));
  if (logits_array)
    args.logits = static_cast<float*>(common.dense(*logits_array, "logits", DType::f32, {&common.R, &columns}));
  if (keys_array) {
    args.keys = static_cast<const int64_t*>(common.dense(*keys_array, "keys", DType::i64, {&common.R}));
    args.step = static_cast<const int32_t*>(common.dense(*step_array, "step", DType::i32, {&common.R}));
    args.drawn = static_cast<int32_t*>(common.dense(*drawn_array, "drawn", DType::i32, {&common.R}));
  }
  if (drawn_log_probs_array)
    args.drawn_log_probs =
        static_cast<float*>(common.dense(*drawn_log_probs_array, "drawn_log_probs", DType::f32, {&common.R}));
  args.workspace = common.dense(workspace_array, "workspace", DType::u8, {&bytes});
  args.dtype = common.dtype;
  args.device = common.device;
  args.rows = common.R.value;
  args.choices = choices.value;
  args.temperature = temperature;
  args.overlap = overlap;
  check_room("workspace", bytes, cuda::select_workspace(args.rows, columns.value, args.choices), "bytes");
  py::gil_scoped_release release;
  cuda::head_select(args, reinterpret_cast<CUstream_st*>(stream));
}

inline void bind_head_select(py::module_& m, Device device) {
  m.def("select_workspace", &cuda::select_workspace, py::arg("rows"), py::arg("columns"), py::arg("choices"));
  m.def(
      "head_select",
      [device](const py::object& x, const py::object& weight, const py::object& scales, int64_t vocab_size,
               const py::object& bias, float temperature, const py::object& tokens, const py::object& log_probs,
               const py::object& logits, const py::object& keys, const py::object& step, const py::object& drawn,
               const py::object& drawn_log_probs, const py::object& workspace, bool overlap, uintptr_t stream) {
        head_select(device, x, weight, scales, vocab_size, bias, temperature, tokens, log_probs, logits, keys, step,
                    drawn, drawn_log_probs, workspace, overlap, stream);
      },
      py::arg("x"), py::arg("weight"), py::arg("scales"), py::arg("vocab_size"), py::arg("bias"),
      py::arg("temperature"), py::arg("tokens"), py::arg("log_probs"), py::arg("logits"), py::arg("keys"),
      py::arg("step"), py::arg("drawn"), py::arg("drawn_log_probs"), py::arg("workspace"), py::arg("overlap") = false,
      py::arg("stream") = 0);
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
