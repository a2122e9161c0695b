// A decoder's weights for the persistent kernel, checked once, and searches with them.
#include <pybind11/stl.h>

#include <array>
#include <memory>

#include "cuda/persistent.h"
#include "cuda_kernels.h"
#include "instances.h"

namespace gitfast::bindings {
namespace {

// Holds the arrays of the weights; calls come with what changes from one to the next.
class DecoderWeights {
 public:
  DecoderWeights(Device kind, const py::dict& given) : kind_(kind), model_(kind, given, "words") {
    Dim words("words"), positions("positions");
    args_.words = model_.dense("words", {&words, &width_});
    args_.positions = model_.dense("positions", {&positions, &width_});
    args_.gamma = model_.dense("gamma", {&width_});
    args_.beta = model_.dense("beta", {&width_});
    args_.num_words = words.value;
    args_.num_positions = positions.value;
    args_.dtype = model_.dtype();
    args_.device = model_.device();
    args_.hidden = static_cast<int>(width_.value);
    args_.heads = model_.value<int>("heads");
    args_.eps = model_.value<float>("eps");
    args_.cluster = model_.value<int>("cluster");
    const auto layers = model_.value<std::vector<py::dict>>("layers");
    args_.layers = static_cast<int>(layers.size());
    if (layers.empty() || layers.size() > cuda::kMaxDecodeLayers)
      throw Error("layers: expected 1 to " + std::to_string(cuda::kMaxDecodeLayers) + ", got " +
                  std::to_string(layers.size()));
    layers_.reserve(layers.size());
    for (int i = 0; i < args_.layers; ++i) {
      Arguments& layer = layers_.emplace_back(model_, layers[static_cast<size_t>(i)]);
      read_layer(args_.layer[i], layer);
      layer.finish();
    }
    Dim vocabulary("vocabulary");
    read_matrix(model_, "head", head_, head_bias_, vocabulary);
    model_.finish();
    args_.intermediate = static_cast<int>(intermediate_.value);
    cuda::DecodeStep one_row = args_;
    one_row.rows = 1;
    cuda::check_decode_step(one_row);
  }

  bool fits() const { return cuda::fits_persistent_decode(arguments(1, 1)); }
  int64_t partials(int rows) const { return cuda::decode_workspace(rows, args_.heads, args_.hidden); }
  int64_t workspace(int rows, int choices) const { return cuda::persistent_workspace(arguments(rows, choices)); }

  // Runs a search that was started: `state`, keys and values of prefixes and text, and memory.
  void decode(const py::kwargs& given) const {
    Arguments state(kind_, given["state"].cast<py::dict>(), "ids"), call(model_, given);
    call.has("state");
    const cuda::SearchState search = search_state(state);
    cuda::PersistentDecode args = arguments(static_cast<int>(search.slots * search.rows_per_slot), 1);
    args.search = search;
    args.decode.ids = search.ids;
    args.decode.position_ids = search.positions;
    args.decode.image = search.image;
    args.decode.kv_index = search.kv_index;
    args.decode.text_len = search.text_len;
    args.decode.max_text = static_cast<int>(search.max_text);
    read_keys_values(args.decode, call);
    Dim R(args.decode.rows), choices("choices"), two(2);
    args.tokens = call.ints("tokens", {&R, &choices});
    args.log_probs = call.floats("log_probs", {&R, &choices});
    args.choices = choices.value;
    args.decode.partials = call.workspace<float>("partials", partials(args.decode.rows));
    args.workspace = call.workspace<uint8_t>("workspace", cuda::persistent_workspace(args));
    args.barrier = reinterpret_cast<uint32_t*>(call.ints("barrier", {&two}));
    Dim words(1 + search.max_steps * R.value);
    if (call.has("token_stream")) args.token_stream = call.host_ints("token_stream", {&words});
    Dim blocks(int64_t{args_.heads} * args_.cluster);
    if (call.has("placement")) args.placement = call.ints("placement", {&blocks});
    enqueue(cuda::persistent_decode, args, call);
  }

 private:
  cuda::PersistentDecode arguments(int rows, int choices) const {
    cuda::PersistentDecode args;
    args.decode = args_;
    args.decode.rows = rows;
    args.head = head_;
    args.head_bias = head_bias_;
    args.choices = choices;
    return args;
  }

  static void read_matrix(Arguments& a, const std::string& name, cuda::TiledWeight& weight, const void*& bias,
                          Dim& columns) {
    bias = a.dense(name + "_bias", {&columns});
    weight = tiled_weight(a, name, columns);
  }

  void read_layer(cuda::DecodeLayer& layer, Arguments& a) {
    Dim three(3 * width_.value);
    read_matrix(a, "qkv", layer.qkv, layer.qkv_bias, three);
    read_matrix(a, "out", layer.out, layer.out_bias, width_);
    read_matrix(a, "fc1", layer.fc1, layer.fc1_bias, intermediate_);
    read_matrix(a, "fc2", layer.fc2, layer.fc2_bias, width_);
    layer.gamma1 = a.dense("gamma1", {&width_});
    layer.beta1 = a.dense("beta1", {&width_});
    layer.gamma2 = a.dense("gamma2", {&width_});
    layer.beta2 = a.dense("beta2", {&width_});
  }

  // Reads the keys and values of every layer, from arrays of all layers.
  static void read_keys_values(cuda::DecodeStep& args, Arguments& a) {
    Dim layers(args.layers), B("B"), H(args.heads), P("P"), S("S"), head_dim(cuda::kDecodeHeadDim);
    const bool quantized = a.has_all_or_none({"k_scale", "v_scale"});
    const DType stored = quantized ? DType::i8 : args.dtype;
    const std::array prefix = {a.dense("k_prefix", stored, {&layers, &B, &H, &P, &head_dim}),
                               a.dense("v_prefix", stored, {&layers, &B, &H, &P, &head_dim})};
    const std::array text = {a.dense("k_text", {&layers, &S, &H, &head_dim}),
                             a.dense("v_text", {&layers, &S, &H, &head_dim})};
    std::array<float*, 2> scale{};
    if (quantized) scale = {a.floats("k_scale", {&layers, &B, &H, &P}), a.floats("v_scale", {&layers, &B, &H, &P})};
    args.prefix_len = static_cast<int>(P.value);
    const int64_t tokens = B.value * P.value;
    const int64_t prefix_bytes = static_cast<int64_t>(dtype_size(stored)) * tokens * args.hidden,
                  text_bytes = 2 * S.value * args.hidden;
    const auto at = [](void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; };
    for (int i = 0; i < args.layers; ++i) {
      cuda::DecodeLayer& layer = args.layer[i];
      layer.k_prefix = at(prefix[0], i * prefix_bytes);
      layer.v_prefix = at(prefix[1], i * prefix_bytes);
      if (quantized) layer.k_scale = scale[0] + i * tokens * args.heads;
      if (quantized) layer.v_scale = scale[1] + i * tokens * args.heads;
      layer.k_text = at(text[0], i * text_bytes);
      layer.v_text = at(text[1], i * text_bytes);
    }
  }

  Device kind_;
  Arguments model_;
  std::vector<Arguments> layers_;
  Dim width_{"D"}, intermediate_{"F"};
  cuda::DecodeStep args_;
  cuda::TiledWeight head_;
  const void* head_bias_ = nullptr;
};

}  // namespace

void bind_cuda_persistent(py::module_& m, Device device) {
  py::class_<DecoderWeights> weights(m, "DecoderWeights", py::module_local());
  require_init(weights);
  weights.def(py::init([device](const py::kwargs& given) { return std::make_unique<DecoderWeights>(device, given); }))
      .def("fits", method(&DecoderWeights::fits))
      .def("partials", &DecoderWeights::partials, py::arg("rows"))
      .def("workspace", &DecoderWeights::workspace, py::arg("rows"), py::arg("choices"))
      .def("decode", method(&DecoderWeights::decode));
}

}  // namespace gitfast::bindings
