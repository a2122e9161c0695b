// The CUDA kernels as Python functions: of device arrays in the module, of host arrays in their emulation.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings.h"
#include "cuda/activation.h"
#include "cuda/attention.h"
#include "cuda/embed.h"
#include "cuda/norm.h"
#include "cuda_arguments.h"
#include "cuda_decode.h"
#include "cuda_linear.h"
#include "cuda_search.h"

namespace gitfast::bindings {

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

// Rows (R, H, head_dim), each dense; gives their stride.
inline void* head_rows(const Common& common, const Array& array, const char* name, std::initializer_list<Dim*> shape,
                       int64_t& stride) {
  common.check(array, name, common.dtype, shape);
  const TensorView& view = array.view();
  if (view.strides[2] != 1 || (view.shape[1] > 1 && view.strides[1] != view.shape[2]))
    throw Error(std::string(name) + ": the elements of a row are strided");
  stride = view.strides[0];
  return view.data;
}

inline void prefix_attention(Device kind, const py::object& q, const py::object& tiles, const py::object& k_prefix,
                             const py::object& v_prefix, const py::object& k_text, const py::object& v_text,
                             const py::object& slots, const py::object& text_len, const py::object& k_new,
                             const py::object& v_new, float scale, int64_t tile_rows, const py::object& out,
                             int64_t splits, const py::object& workspace, const py::object& k_scale,
                             const py::object& v_scale, uintptr_t stream) {
  const Array q_array(q, "q"), tile_array(tiles, "tiles"), k_array(k_prefix, "k_prefix"), v_array(v_prefix, "v_prefix");
  const Array out_array(out, "out");
  Common common(kind, q_array);
  Dim R("R"), T("T"), three(3), B("B"), H("H"), P("P"), D("head_dim"), S("S"), L("max_text");
  cuda::PrefixAttention args;
  args.q = head_rows(common, q_array, "q", {&R, &H, &D}, args.q_stride);
  args.out = head_rows(common, out_array, "out", {&R, &H, &D}, args.out_stride);
  args.tile_list = static_cast<const int32_t*>(common.dense(tile_array, "tiles", DType::i32, {&T, &three}));
  if (k_scale.is_none() != v_scale.is_none()) throw Error("k_scale, v_scale: expected both or none of them");
  const DType prefix_dtype = k_scale.is_none() ? common.dtype : DType::i8;
  args.k_prefix = common.dense(k_array, "k_prefix", prefix_dtype, {&B, &H, &P, &D});
  args.v_prefix = common.dense(v_array, "v_prefix", prefix_dtype, {&B, &H, &P, &D});
  std::vector<Array> kept;  // their memory, until the kernel is enqueued
  kept.reserve(9);
  const auto keep = [&](const py::object& object, const char* name) -> const Array& {
    return kept.emplace_back(object, name);
  };
  if (!k_scale.is_none()) {
    args.k_scale =
        static_cast<const float*>(common.dense(keep(k_scale, "k_scale"), "k_scale", DType::f32, {&B, &H, &P}));
    args.v_scale =
        static_cast<const float*>(common.dense(keep(v_scale, "v_scale"), "v_scale", DType::f32, {&B, &H, &P}));
  }
  if (slots.is_none() != k_text.is_none() || slots.is_none() != v_text.is_none() ||
      slots.is_none() != text_len.is_none())
    throw Error("k_text, v_text, slots, text_len: expected all or none of them");
  if (k_new.is_none() != v_new.is_none() || (!k_new.is_none() && slots.is_none()))
    throw Error("k_new, v_new: expected both, with k_text, v_text, slots and text_len");
  if (!slots.is_none()) {
    args.k_text = common.dense(keep(k_text, "k_text"), "k_text", common.dtype, {&S, &H, &D});
    args.v_text = common.dense(keep(v_text, "v_text"), "v_text", common.dtype, {&S, &H, &D});
    args.slots = static_cast<const int32_t*>(common.dense(keep(slots, "slots"), "slots", DType::i32, {&R, &L}));
    args.text_len = static_cast<const int32_t*>(common.dense(keep(text_len, "text_len"), "text_len", DType::i32, {&R}));
    args.max_text = L.value;
    args.num_slots = S.value;
  }
  if (!k_new.is_none()) {
    int64_t v_stride = 0;
    args.k_new = head_rows(common, keep(k_new, "k_new"), "k_new", {&R, &H, &D}, args.new_stride);
    args.v_new = head_rows(common, keep(v_new, "v_new"), "v_new", {&R, &H, &D}, v_stride);
    if (v_stride != args.new_stride) throw Error("v_new: expected the strides of k_new");
  }
  if (!(scale > 0)) throw Error("scale: expected a positive number, got " + std::to_string(scale));
  args.dtype = common.dtype;
  args.device = common.device;
  args.rows = R.value;
  args.tiles = T.value;
  args.images = B.value;
  args.heads = H.value;
  args.head_dim = D.value;
  args.prefix_len = P.value;
  args.tile_rows = tile_rows;
  args.splits = splits;
  args.scale = scale;
  if (!workspace.is_none()) {
    Dim W("floats");
    args.workspace = common.dense(keep(workspace, "workspace"), "workspace", DType::f32, {&W});
    check_room("workspace", W, static_cast<int64_t>(cuda::workspace_bytes(args) / sizeof(float)), "floats");
  }
  py::gil_scoped_release release;
  cuda::prefix_attention(args, reinterpret_cast<CUstream_st*>(stream));
}

// Floats of the workspace of prefix_attention.
inline size_t attention_workspace(int64_t rows, int64_t tiles, int64_t heads, int64_t head_dim, int64_t splits) {
  for (const auto& [name, size] : {std::pair{"rows", rows}, {"tiles", tiles}, {"heads", heads}, {"head_dim", head_dim}})
    if (size < 0) throw Error(std::string(name) + ": expected a size, got " + std::to_string(size));
  cuda::PrefixAttention args;
  args.rows = rows;
  args.tiles = tiles;
  args.heads = heads;
  args.head_dim = head_dim;
  args.splits = splits;
  return cuda::workspace_bytes(args) / sizeof(float);
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
  bind_linear(m, device);
  bind_head_select(m, device);
  bind_cuda_search(m, device);
  bind_decode(m, device);
  m.def(
      "prefix_attention",
      [device](const py::object& q, const py::object& tiles, const py::object& k_prefix, const py::object& v_prefix,
               const py::object& k_text, const py::object& v_text, const py::object& slots, const py::object& text_len,
               const py::object& k_new, const py::object& v_new, float scale, int64_t tile_rows, const py::object& out,
               int64_t splits, const py::object& workspace, const py::object& k_scale, const py::object& v_scale,
               uintptr_t stream) {
        prefix_attention(device, q, tiles, k_prefix, v_prefix, k_text, v_text, slots, text_len, k_new, v_new, scale,
                         tile_rows, out, splits, workspace, k_scale, v_scale, stream);
      },
      py::arg("q"), py::arg("tiles"), py::arg("k_prefix"), py::arg("v_prefix"), py::arg("k_text"), py::arg("v_text"),
      py::arg("slots"), py::arg("text_len"), py::arg("k_new"), py::arg("v_new"), py::arg("scale"), py::arg("tile_rows"),
      py::arg("out"), py::arg("splits") = 1, py::arg("workspace") = py::none(), py::arg("k_scale") = py::none(),
      py::arg("v_scale") = py::none(), py::arg("stream") = 0);
  m.def("attention_workspace", &attention_workspace, py::arg("rows"), py::arg("tiles"), py::arg("heads"),
        py::arg("head_dim"), py::arg("splits"));
}

}  // namespace gitfast::bindings
