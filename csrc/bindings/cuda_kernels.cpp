// Bindings of the CUDA kernels of one operation each: keyword arguments to the structs of csrc/cuda.
#include "cuda_kernels.h"

#include <pybind11/stl.h>

#include <utility>

#include "cuda/activation.h"
#include "cuda/attention.h"
#include "cuda/embed.h"
#include "cuda/norm.h"
#include "cuda/select.h"

namespace gitfast::bindings {

cuda::TiledWeight tiled_weight(Arguments& arguments, const std::string& name, Dim& columns) {
  cuda::TiledWeight weight;
  weight.dtype = arguments.dtype_of(name);
  Dim steps("steps"), tiles((columns.value + 7) / 8), eight(8);
  Dim depth(64 / static_cast<int64_t>(dtype_size(weight.dtype)));
  weight.data = arguments.dense(name, weight.dtype, {&tiles, &steps, &eight, &depth});
  weight.columns = columns.value;
  weight.depth = steps.value * depth.value;
  if (arguments.has(name + "_scales")) weight.scales = arguments.floats(name + "_scales", {&columns});
  return weight;
}

namespace {

void add_layer_norm(Arguments& a) {
  Dim R("R"), D("D");
  cuda::AddLayerNorm args;
  args.x = a.rows("x", R, D, args.x_stride);
  args.gamma = a.dense("gamma", {&D});
  args.beta = a.dense("beta", {&D});
  args.out = a.rows_out("out", R, D, args.out_stride);
  if (a.has("bias")) args.bias = a.dense("bias", {&D});
  if (a.has("residual")) args.residual = a.rows("residual", R, D, args.residual_stride);
  args.dtype = a.dtype();
  args.device = a.device();
  args.rows = R.value;
  args.width = D.value;
  args.eps = a.value<float>("eps");
  args.overlap = a.value<bool>("overlap", false);
  enqueue(cuda::add_layer_norm, args, a);
}

cuda::Activation activation_named(const std::string& name) {
  if (name == "none") return cuda::Activation::none;
  if (name == "gelu") return cuda::Activation::gelu;
  if (name == "quick_gelu") return cuda::Activation::quick_gelu;
  throw Error("activation: expected 'none', 'gelu' or 'quick_gelu', got '" + name + "'");
}

void bias_activation(Arguments& a) {
  Dim R("R"), D("D");
  cuda::BiasActivation args;
  args.activation = activation_named(a.value<std::string>("activation"));
  args.x = a.rows("x", R, D, args.x_stride);
  args.out = a.rows_out("out", R, D, args.out_stride);
  if (a.has("bias")) args.bias = a.dense("bias", {&D});
  args.dtype = a.dtype();
  args.device = a.device();
  args.rows = R.value;
  args.width = D.value;
  enqueue(cuda::bias_activation, args, a);
}

void embed_layer_norm(Arguments& a) {
  Dim R("R"), D("D"), words("V"), positions("positions");
  cuda::EmbedLayerNorm args;
  args.words = a.rows("words", words, D, args.words_stride);
  args.positions = a.rows("positions", positions, D, args.positions_stride);
  args.ids = a.ints("ids", {&R});
  args.position_ids = a.ints("position_ids", {&R});
  args.gamma = a.dense("gamma", {&D});
  args.beta = a.dense("beta", {&D});
  args.out = a.rows_out("out", R, D, args.out_stride);
  args.dtype = a.dtype();
  args.device = a.device();
  args.rows = R.value;
  args.width = D.value;
  args.num_words = words.value;
  args.num_positions = positions.value;
  args.eps = a.value<float>("eps");
  args.overlap = a.value<bool>("overlap", false);
  enqueue(cuda::embed_layer_norm, args, a);
}

// What a linear layer takes; its rows are R of depth elements.
void read_linear(Arguments& a, cuda::Linear& args, Dim& R, Dim& depth) {
  Dim columns("N");
  args.out = a.rows_out("out", R, columns, args.out_stride);
  args.weight = tiled_weight(a, "weight", columns);
  depth = Dim(args.weight.depth);
  args.x = a.rows("x", R, depth, args.x_stride);
  if (a.has("bias")) args.bias = a.dense("bias", {&columns});
  if (a.has("residual")) args.residual = a.rows("residual", R, columns, args.residual_stride);
  args.activation = activation_named(a.value<std::string>("activation"));
  args.dtype = a.dtype();
  args.device = a.device();
  args.rows = R.value;
  args.overlap = a.value<bool>("overlap", false);
}

void linear(Arguments& a) {
  cuda::Linear args;
  Dim R("R"), depth(int64_t{0});
  read_linear(a, args, R, depth);
  enqueue(cuda::linear, args, a);
}

void norm_linear(Arguments& a) {
  cuda::NormLinear args;
  Dim R("R"), depth(int64_t{0});
  read_linear(a, args, R, depth);
  args.gamma = a.dense("gamma", {&depth});
  args.beta = a.dense("beta", {&depth});
  args.normalised = a.rows_out("normalised", R, depth, args.normalised_stride);
  args.eps = a.value<float>("eps");
  enqueue(cuda::norm_linear, args, a);
}

void head_select(Arguments& a) {
  cuda::HeadSelect args;
  Dim R("R"), columns(a.value<int64_t>("vocab_size")), choices("choices");
  args.weight = tiled_weight(a, "weight", columns);
  Dim depth(args.weight.depth);
  args.x = a.rows("x", R, depth, args.x_stride);
  if (a.has("bias")) args.bias = a.dense("bias", {&columns});
  args.tokens = a.ints("tokens", {&R, &choices});
  args.log_probs = a.floats("log_probs", {&R, &choices});
  if (a.has("logits")) args.logits = a.floats("logits", {&R, &columns});
  if (a.has_all_or_none({"keys", "step", "drawn"})) {
    args.keys = a.longs("keys", {&R});
    args.step = a.ints("step", {&R});
    args.drawn = a.ints("drawn", {&R});
  }
  if (a.has("drawn_log_probs")) {
    if (!args.drawn) throw Error("drawn_log_probs: expected None without drawn");
    args.drawn_log_probs = a.floats("drawn_log_probs", {&R});
  }
  args.dtype = a.dtype();
  args.device = a.device();
  args.rows = R.value;
  args.choices = choices.value;
  args.temperature = a.value<float>("temperature", 1.0f);
  args.workspace = a.workspace<uint8_t>("workspace", cuda::select_workspace(args.rows, columns.value, args.choices));
  args.overlap = a.value<bool>("overlap", false);
  enqueue(cuda::head_select, args, a);
}

void prefix_attention(Arguments& a) {
  Dim R("R"), T("T"), three(3), B("B"), H("H"), P("P"), D("head_dim"), S("S"), L("max_text");
  cuda::PrefixAttention args;
  args.q = a.head_rows("q", R, H, D, args.q_stride);
  args.out = a.head_rows("out", R, H, D, args.out_stride);
  args.tile_list = a.ints("tiles", {&T, &three});
  const bool quantized = a.has_all_or_none({"k_scale", "v_scale"});
  const DType prefix_dtype = quantized ? DType::i8 : a.dtype();
  args.k_prefix = a.dense("k_prefix", prefix_dtype, {&B, &H, &P, &D});
  args.v_prefix = a.dense("v_prefix", prefix_dtype, {&B, &H, &P, &D});
  if (quantized) {
    args.k_scale = a.floats("k_scale", {&B, &H, &P});
    args.v_scale = a.floats("v_scale", {&B, &H, &P});
  }
  const bool text = a.has_all_or_none({"k_text", "v_text", "kv_index", "text_len"});
  if (text) {
    args.k_text = a.dense("k_text", {&S, &H, &D});
    args.v_text = a.dense("v_text", {&S, &H, &D});
    args.kv_index = a.ints("kv_index", {&R, &L});
    args.text_len = a.ints("text_len", {&R});
    args.max_text = L.value;
    args.kv_capacity = S.value;
  }
  if (a.has_all_or_none({"k_new", "v_new"})) {
    if (!text) throw Error("k_new, v_new: expected k_text, v_text, kv_index and text_len as well");
    int64_t v_stride = 0;
    args.k_new = a.head_rows("k_new", R, H, D, args.new_stride);
    args.v_new = a.head_rows("v_new", R, H, D, v_stride);
    if (v_stride != args.new_stride) throw Error("v_new: expected the strides of k_new");
  }
  args.scale = a.value<float>("scale");
  if (!(args.scale > 0)) throw Error("scale: expected a positive number, got " + std::to_string(args.scale));
  args.dtype = a.dtype();
  args.device = a.device();
  args.rows = R.value;
  args.tiles = T.value;
  args.images = B.value;
  args.heads = H.value;
  args.head_dim = D.value;
  args.prefix_len = P.value;
  args.tile_rows = a.value<int64_t>("tile_rows", 16);
  args.splits = a.value<int64_t>("splits", 1);
  args.overlap = a.value<bool>("overlap", false);
  if (a.has("workspace"))
    args.workspace = a.workspace<float>("workspace", static_cast<int64_t>(cuda::workspace_bytes(args) / sizeof(float)));
  enqueue(cuda::prefix_attention, args, a);
}

// Floats of the workspace of prefix_attention.
size_t attention_workspace(int64_t rows, int64_t heads, int64_t head_dim, int64_t splits) {
  for (const auto& [name, size] : {std::pair{"rows", rows}, {"heads", heads}, {"head_dim", head_dim}})
    if (size < 0) throw Error(std::string(name) + ": expected a size, got " + std::to_string(size));
  cuda::PrefixAttention args;
  args.rows = rows;
  args.heads = heads;
  args.head_dim = head_dim;
  args.splits = splits;
  return cuda::workspace_bytes(args) / sizeof(float);
}

}  // namespace

void bind_cuda_kernels(py::module_& m, Device device) {
  bind_kernel(m, device, "add_layer_norm", "x", add_layer_norm);
  bind_kernel(m, device, "bias_activation", "x", bias_activation);
  bind_kernel(m, device, "embed_layer_norm", "words", embed_layer_norm);
  bind_kernel(m, device, "linear", "x", linear);
  bind_kernel(m, device, "norm_linear", "x", norm_linear);
  bind_kernel(m, device, "head_select", "x", head_select);
  bind_kernel(m, device, "prefix_attention", "q", prefix_attention);
  m.def("select_workspace", &cuda::select_workspace, py::arg("rows"), py::arg("columns"), py::arg("choices"));
  m.def("attention_workspace", &attention_workspace, py::arg("rows"), py::arg("heads"), py::arg("head_dim"),
        py::arg("splits"));
  bind_cuda_search(m, device);
  bind_cuda_persistent(m, device);
}

}  // namespace gitfast::bindings
