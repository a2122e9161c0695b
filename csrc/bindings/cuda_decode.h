// A model's decoder for the kernels of few rows (cuda/decode.h), as a Python object.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/caption.h"
#include "cuda_linear.h"
#include "cuda_search.h"

namespace gitfast::bindings {

// The weights, which stay where they are and are checked once; steps come with what changes.
class Decoder {
 public:
  // Layers as mappings from names to arrays: qkv, out, fc1, fc2 (packed), each with _scales (None for 16 bits) and
  // _bias, and gamma1, beta1, gamma2, beta2. The head as one of head, head_scales and head_bias.
  Decoder(Device kind, const py::list& layers, int heads, const py::object& words, const py::object& positions,
          const py::object& gamma, const py::object& beta, float eps, int cluster, const py::dict& head)
      : kind_(kind), words_(keep(words, "words")), common_(kind, words_), width_("D"), intermediate_("F") {
    Dim num_words("words"), num_positions("positions");
    args_.words = common_.dense(words_, "words", common_.dtype, {&num_words, &width_});
    args_.positions = dense(positions, "positions", {&num_positions, &width_});
    args_.gamma = dense(gamma, "gamma", {&width_});
    args_.beta = dense(beta, "beta", {&width_});
    args_.num_words = num_words.value;
    args_.num_positions = num_positions.value;
    args_.dtype = common_.dtype;
    args_.device = common_.device;
    args_.layers = static_cast<int>(layers.size());
    if (layers.empty() || layers.size() > cuda::kDecodeLayers)
      throw Error("layers: expected 1 to " + std::to_string(cuda::kDecodeLayers) + ", got " +
                  std::to_string(layers.size()));
    args_.hidden = static_cast<int>(width_.value);
    args_.heads = heads;
    args_.eps = eps;
    args_.cluster = cluster;
    for (int i = 0; i < args_.layers; ++i) add_layer(args_.layer[i], layers[static_cast<size_t>(i)].cast<py::dict>());
    Dim vocabulary("vocabulary");
    add_matrix(head, "head", head_, head_bias_, vocabulary);
    args_.intermediate = static_cast<int>(intermediate_.value);
    cuda::Decode one_row = args_;
    one_row.rows = 1;
    cuda::check_decode(one_row);
  }

  int64_t workspace(int rows) const { return cuda::decode_workspace(rows, args_.heads, args_.hidden); }

  void step(const py::object& ids, const py::object& position_ids, const py::object& image, const py::object& slots,
            const py::object& text_len, const py::object& k_prefix, const py::object& v_prefix,
            const py::object& k_text, const py::object& v_text, const py::object& k_scale, const py::object& v_scale,
            const py::object& partials, const py::object& hidden, uintptr_t stream) const {
    const Array out(hidden, "hidden"), partial_array(partials, "partials");
    Dim R("R"), D(args_.hidden), floats("floats");
    void* to = common_.dense(out, "hidden", common_.dtype, {&R, &D});
    cuda::Decode args = args_;
    args.rows = static_cast<int>(R.value);
    const std::vector<Array> kept =
        rows(args, R, ids, position_ids, image, slots, text_len, k_prefix, v_prefix, k_text, v_text, k_scale, v_scale);
    args.partials = static_cast<float*>(common_.dense(partial_array, "partials", DType::f32, {&floats}));
    check_room("partials", floats, workspace(args.rows), "floats");
    py::gil_scoped_release release;
    cuda::decode_step(args, to, reinterpret_cast<CUstream_st*>(stream));
  }

  bool can_caption() const {
    cuda::Caption args;
    args.decode = args_;
    args.head = head_;
    return cuda::can_caption(args);
  }
  int64_t caption_workspace(int rows, int choices) const {
    cuda::Caption args;
    args.decode = args_;
    args.decode.rows = rows;
    args.choices = choices;
    return cuda::caption_workspace(args);
  }

  void caption(const py::object& state, const py::object& k_prefix, const py::object& v_prefix,
               const py::object& k_text, const py::object& v_text, const py::object& k_scale, const py::object& v_scale,
               const py::object& partials, const py::object& tokens, const py::object& log_probs,
               const py::object& workspace, const py::object& barrier, const py::object& told, uintptr_t stream) const {
    const SearchArguments search(kind_, state);
    Dim R(search.call.state.items * search.call.state.rows_per_item), floats("floats"), bytes("bytes"), two(2);
    cuda::Decode decode = args_;
    decode.rows = static_cast<int>(R.value);
    std::vector<Array> kept =
        rows(decode, R, state.attr("ids"), state.attr("positions"), state.attr("image"), state.attr("slots"),
             state.attr("text_len"), k_prefix, v_prefix, k_text, v_text, k_scale, v_scale);
    decode.partials =
        static_cast<float*>(common_.dense(kept.emplace_back(partials, "partials"), "partials", DType::f32, {&floats}));
    cuda::Caption args = caption_of(search, decode, tokens, log_probs, kept);
    args.workspace = common_.dense(kept.emplace_back(workspace, "workspace"), "workspace", DType::u8, {&bytes});
    args.barrier =
        static_cast<uint32_t*>(common_.dense(kept.emplace_back(barrier, "barrier"), "barrier", DType::i32, {&two}));
    if (!told.is_none()) {  // memory of the host, which the device sees at the same address
      Dim words(1 + args.search.max_steps * R.value);
      const Array& array = kept.emplace_back(told, "told");
      array.check().dtype(DType::i32).shape({&words}).contiguous();
      args.told = array.view().ptr<int32_t>();
    }
    check_room("partials", floats, this->workspace(decode.rows), "floats");
    check_room("workspace", bytes, cuda::caption_workspace(args), "bytes");
    py::gil_scoped_release release;
    cuda::caption(args, reinterpret_cast<CUstream_st*>(stream));
  }

 private:
  const Array& keep(const py::object& object, const char* name) {
    kept_.push_back(std::make_unique<Array>(object, name));
    return *kept_.back();
  }
  const void* dense(const py::object& object, const char* name, std::initializer_list<Dim*> shape) {
    return common_.dense(keep(object, name), name, common_.dtype, shape);
  }

  static py::object get(const py::dict& given, const std::string& name) {
    if (!given.contains(name)) throw Error("layers, head: expected an array " + name);
    return given[name.c_str()].cast<py::object>();
  }

  void add_matrix(const py::dict& given, const std::string& name, cuda::PackedWeight& weight, const void*& bias,
                  Dim& columns) {
    bias = dense(get(given, name + "_bias"), "bias", {&columns});
    weight = packed_weight(common_, keep(get(given, name), "weight"), std::nullopt, columns);
    if (const py::object scales = get(given, name + "_scales"); !scales.is_none())
      weight.scales =
          static_cast<const float*>(common_.dense(keep(scales, "scales"), "scales", DType::f32, {&columns}));
  }

  void add_layer(cuda::DecodeLayer& layer, const py::dict& given) {
    Dim three(3 * width_.value);
    add_matrix(given, "qkv", layer.qkv, layer.qkv_bias, three);
    add_matrix(given, "out", layer.out, layer.out_bias, width_);
    add_matrix(given, "fc1", layer.fc1, layer.fc1_bias, intermediate_);
    add_matrix(given, "fc2", layer.fc2, layer.fc2_bias, width_);
    layer.gamma1 = dense(get(given, "gamma1"), "gamma1", {&width_});
    layer.beta1 = dense(get(given, "beta1"), "beta1", {&width_});
    layer.gamma2 = dense(get(given, "gamma2"), "gamma2", {&width_});
    layer.beta2 = dense(get(given, "beta2"), "beta2", {&width_});
  }

  cuda::Caption caption_of(const SearchArguments& state, const cuda::Decode& decode, const py::object& tokens,
                           const py::object& log_probs, std::vector<Array>& kept) const {
    cuda::Caption args;
    args.decode = decode;
    args.search = state.call.state;
    args.head = head_;
    args.head_bias = head_bias_;
    Dim R(decode.rows), choices("choices");
    args.tokens =
        static_cast<int32_t*>(common_.dense(kept.emplace_back(tokens, "tokens"), "tokens", DType::i32, {&R, &choices}));
    args.log_probs = static_cast<float*>(
        common_.dense(kept.emplace_back(log_probs, "log_probs"), "log_probs", DType::f32, {&R, &choices}));
    args.choices = choices.value;
    return args;
  }

  // What a step reads and writes beside the weights; the arrays hold its memory until the kernels are enqueued.
  std::vector<Array> rows(cuda::Decode& args, Dim& R, const py::object& ids, const py::object& position_ids,
                          const py::object& image, const py::object& slots, const py::object& text_len,
                          const py::object& k_prefix, const py::object& v_prefix, const py::object& k_text,
                          const py::object& v_text, const py::object& k_scale, const py::object& v_scale) const {
    Dim layers(args.layers), B("B"), H(args.heads), P("P"), S("S"), L("max_text"), head_dim(cuda::kDecodeHeadDim);
    std::vector<Array> kept;
    kept.reserve(16);
    const auto of = [&](const py::object& object, const char* name, DType dtype, std::initializer_list<Dim*> shape) {
      return common_.dense(kept.emplace_back(object, name), name, dtype, shape);
    };
    args.ids = static_cast<const int32_t*>(of(ids, "ids", DType::i32, {&R}));
    args.position_ids = static_cast<const int32_t*>(of(position_ids, "position_ids", DType::i32, {&R}));
    args.image = static_cast<const int32_t*>(of(image, "image", DType::i32, {&R}));
    args.slots = static_cast<const int32_t*>(of(slots, "slots", DType::i32, {&R, &L}));
    args.text_len = static_cast<const int32_t*>(of(text_len, "text_len", DType::i32, {&R}));
    if (k_scale.is_none() != v_scale.is_none()) throw Error("k_scale, v_scale: expected both or none of them");
    const DType stored = k_scale.is_none() ? args.dtype : DType::i8;
    const std::array prefix = {of(k_prefix, "k_prefix", stored, {&layers, &B, &H, &P, &head_dim}),
                               of(v_prefix, "v_prefix", stored, {&layers, &B, &H, &P, &head_dim})};
    const std::array text = {of(k_text, "k_text", args.dtype, {&layers, &S, &H, &head_dim}),
                             of(v_text, "v_text", args.dtype, {&layers, &S, &H, &head_dim})};
    const auto scales = [&](const py::object& object, const char* name) {
      return object.is_none() ? nullptr : static_cast<float*>(of(object, name, DType::f32, {&layers, &B, &H, &P}));
    };
    const std::array scale = {scales(k_scale, "k_scale"), scales(v_scale, "v_scale")};
    args.prefix_len = static_cast<int>(P.value);
    args.max_text = static_cast<int>(L.value);
    const int64_t tokens = B.value * P.value;
    const int64_t prefix_bytes = static_cast<int64_t>(dtype_size(stored)) * tokens * args.hidden,
                  text_bytes = 2 * S.value * args.hidden;
    const auto at = [](void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; };
    for (int i = 0; i < args.layers; ++i) {
      cuda::DecodeLayer& layer = args.layer[i];
      layer.k_prefix = at(prefix[0], i * prefix_bytes);
      layer.v_prefix = at(prefix[1], i * prefix_bytes);
      if (scale[0]) layer.k_scale = scale[0] + i * tokens * args.heads;
      if (scale[1]) layer.v_scale = scale[1] + i * tokens * args.heads;
      layer.k_text = at(text[0], i * text_bytes);
      layer.v_text = at(text[1], i * text_bytes);
    }
    return kept;
  }

  Device kind_;
  std::vector<std::unique_ptr<Array>> kept_;
  const Array& words_;
  Common common_;
  Dim width_, intermediate_;
  cuda::Decode args_;
  cuda::PackedWeight head_;
  const void* head_bias_ = nullptr;
};

inline void bind_decode(py::module_& m, Device device) {
  // The module of device kernels and that of emulated ones each have their own.
  py::class_<Decoder>(m, "Decoder", py::module_local())
      .def(py::init([device](const py::list& layers, int heads, const py::object& words, const py::object& positions,
                             const py::object& gamma, const py::object& beta, float eps, int cluster,
                             const py::dict& head) {
             return std::make_unique<Decoder>(device, layers, heads, words, positions, gamma, beta, eps, cluster, head);
           }),
           py::arg("layers"), py::arg("heads"), py::arg("words"), py::arg("positions"), py::arg("gamma"),
           py::arg("beta"), py::arg("eps"), py::arg("cluster"), py::arg("head"))
      .def("workspace", &Decoder::workspace, py::arg("rows"))
      .def("step", &Decoder::step, py::arg("ids"), py::arg("position_ids"), py::arg("image"), py::arg("slots"),
           py::arg("text_len"), py::arg("k_prefix"), py::arg("v_prefix"), py::arg("k_text"), py::arg("v_text"),
           py::arg("k_scale"), py::arg("v_scale"), py::arg("partials"), py::arg("hidden"), py::arg("stream") = 0)
      .def("can_caption", &Decoder::can_caption)
      .def("caption_workspace", &Decoder::caption_workspace, py::arg("rows"), py::arg("choices"))
      .def("caption", &Decoder::caption, py::arg("state"), py::arg("k_prefix"), py::arg("v_prefix"), py::arg("k_text"),
           py::arg("v_text"), py::arg("k_scale"), py::arg("v_scale"), py::arg("partials"), py::arg("tokens"),
           py::arg("log_probs"), py::arg("workspace"), py::arg("barrier"), py::arg("told"), py::arg("stream") = 0);
  m.def("can_decode", &cuda::can_decode, py::arg("device"), py::arg("hidden"), py::arg("intermediate"),
        py::arg("heads"), py::arg("cluster"));
}

}  // namespace gitfast::bindings
