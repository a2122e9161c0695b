// The CUDA kernels as Python functions: of device arrays in the module, of host arrays in their emulation.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "cuda/activation.h"
#include "cuda/embed.h"
#include "cuda/norm.h"

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

// Rows that are written must not share elements.
inline void check_apart(const char* name, const Dim& count, const Dim& extent, int64_t stride) {
  if (count.value > 1 && stride < extent.value) throw Error(std::string(name) + ": its rows overlap");
}

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
  check_apart("out", common.R, common.width, args.out_stride);
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
  check_apart("out", common.R, common.width, args.out_stride);
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

inline void embed_layer_norm(Device kind, const py::object& ids, const py::object& position_ids,
                             const py::object& words, const py::object& positions, const py::object& gamma,
                             const py::object& beta, float eps, const py::object& out, uintptr_t stream) {
  const Array ids_array(ids, "ids"), position_ids_array(position_ids, "position_ids"), words_array(words, "words"),
      positions_array(positions, "positions"), gamma_array(gamma, "gamma"), beta_array(beta, "beta"),
      out_array(out, "out");
  Common common(kind, words_array);
  Dim num_words("V"), num_positions("positions");
  cuda::EmbedLayerNorm args;
  args.words = common.rows(words_array, "words", common.dtype, num_words, common.width, args.words_stride);
  args.positions =
      common.rows(positions_array, "positions", common.dtype, num_positions, common.width, args.positions_stride);
  args.ids = static_cast<int32_t*>(common.dense(ids_array, "ids", DType::i32, {&common.R}));
  args.position_ids = static_cast<int32_t*>(common.dense(position_ids_array, "position_ids", DType::i32, {&common.R}));
  args.gamma = common.vector(gamma_array, "gamma");
  args.beta = common.vector(beta_array, "beta");
  args.out = common.rows(out_array, "out", args.out_stride);
  check_apart("out", common.R, common.width, args.out_stride);
  args.dtype = common.dtype;
  args.device = common.device;
  args.rows = common.R.value;
  args.width = common.width.value;
  args.num_words = num_words.value;
  args.num_positions = num_positions.value;
  args.eps = eps;
  py::gil_scoped_release release;
  cuda::embed_layer_norm(args, reinterpret_cast<CUstream_st*>(stream));
}

inline void bind_embed_layer_norm(py::module_& m, Device device) {
  m.def(
      "embed_layer_norm",
      [device](const py::object& ids, const py::object& position_ids, const py::object& words,
               const py::object& positions, const py::object& gamma, const py::object& beta, float eps,
               const py::object& out, uintptr_t stream) {
        embed_layer_norm(device, ids, position_ids, words, positions, gamma, beta, eps, out, stream);
      },
      py::arg("ids"), py::arg("position_ids"), py::arg("words"), py::arg("positions"), py::arg("gamma"),
      py::arg("beta"), py::arg("eps"), py::arg("out"), py::arg("stream") = 0);
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
  bind_embed_layer_norm(m, device);
}

}  // namespace gitfast::bindings
