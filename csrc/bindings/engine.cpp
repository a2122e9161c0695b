#include "cpu/engine.h"

#include "arrays.h"
#include "bindings.h"
#include "formats.h"
#include "options.h"

namespace gitfast::bindings {
namespace {

using cpu::Engine;
using cpu::PixelBatch;
using cpu::Prefix;
using cpu::PrefixPtr;
using cpu::TokenLists;

template <class T>
T field(const py::dict& d, const char* name) {
  if (!d.contains(name)) throw Error(std::string("config: missing ") + name);
  return d[name].cast<T>();
}

ModelConfig model_config(const py::dict& d) {
  const auto vd = field<py::dict>(d, "vision_config");
  ModelConfig c;
  c.vision.hidden_size = field<int64_t>(vd, "hidden_size");
  c.vision.intermediate_size = field<int64_t>(vd, "intermediate_size");
  c.vision.num_layers = field<int64_t>(vd, "num_hidden_layers");
  c.vision.num_heads = field<int64_t>(vd, "num_attention_heads");
  c.vision.image_size = field<int64_t>(vd, "image_size");
  c.vision.patch_size = field<int64_t>(vd, "patch_size");
  c.vision.layer_norm_eps = field<float>(vd, "layer_norm_eps");
  c.vocab_size = field<int64_t>(d, "vocab_size");
  c.hidden_size = field<int64_t>(d, "hidden_size");
  c.intermediate_size = field<int64_t>(d, "intermediate_size");
  c.num_layers = field<int64_t>(d, "num_hidden_layers");
  c.num_heads = field<int64_t>(d, "num_attention_heads");
  c.max_positions = field<int64_t>(d, "max_position_embeddings");
  c.layer_norm_eps = field<float>(d, "layer_norm_eps");
  const auto frames = field<py::object>(d, "num_image_with_embedding");
  c.num_frames = frames.is_none() ? 0 : frames.cast<int64_t>();
  return c;
}

std::unique_ptr<Engine> make_engine(const py::dict& config, const py::object& weights, const std::string& dtype,
                                    int num_threads, const std::string& isa, bool two_stage_head) {
  const cpu::WeightFormat format = weight_format_named(dtype);
  const ModelConfig model = model_config(config);
  const cpu::Isa chosen = cpu::choose_isa(isa);
  py::object held;  // the array behind the last view
  const WeightSource source = [&](const std::string& name) {
    py::gil_scoped_acquire acquire;
    held = py::none();  // before the next one is made
    held = weights[py::str(name)];
    return view_of(as_array(held, name.c_str()), name.c_str());
  };
  py::gil_scoped_release release;
  return std::make_unique<Engine>(model, source, format, num_threads, chosen, two_stage_head);
}

// Iterates over a sequence; an element lives until the next one is asked for.
py::iterator elements(const py::handle& object, const std::string& name, const char* of) {
  if (!py::isinstance<py::sequence>(object) && !py::isinstance<py::array>(object))
    throw py::type_error(name + ": expected a sequence of " + of + ", got " + std::string(py::repr(object)));
  return py::iter(object);
}

// A sequence of sequences of token ids.
TokenLists token_lists(const py::object& object, const std::string& name) {
  TokenLists out;
  for (const py::handle row : elements(object, name, "token id sequences")) {
    const std::string where = name + "[" + std::to_string(out.size()) + "]";
    std::vector<int32_t>& ids = out.emplace_back();
    for (const py::handle item : elements(row, where, "token ids")) {
      const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(item.ptr()));
      if (!index) {
        PyErr_Clear();
        throw py::type_error(where + ": expected integers, got " + std::string(py::repr(item)));
      }
      int overflow = 0;
      const long long id = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (overflow || id < INT32_MIN || id > INT32_MAX)
        throw Error(where + ": token id " + std::string(py::str(index)) + " is outside the vocabulary");
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  return out;
}

std::vector<PrefixPtr> prefix_list(const py::object& object) {
  std::vector<PrefixPtr> out;
  for (const py::handle prefix : elements(object, "prefixes", "prefixes")) {
    if (!prefix.is_none() && !py::isinstance<Prefix>(prefix))
      throw py::type_error("prefixes[" + std::to_string(out.size()) +
                           "]: expected a prefix of this engine or None, got " +
                           std::string(py::str(py::type::handle_of(prefix).attr("__name__"))));
    out.push_back(prefix.cast<std::shared_ptr<Prefix>>());
  }
  return out;
}

// Lets Ctrl-C end a native call.
void poll_signals() {
  py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

PixelBatch pixel_batch(const Array& pixels, bool interpolate_positions) {
  pixels.floats().contiguous();
  const TensorView& t = pixels.view();
  Dim B("B"), T("T"), C(3), H("H"), W("W");
  PixelBatch p;
  p.interpolate_positions = interpolate_positions;
  if (t.ndim != 4 && t.ndim != 5)
    throw Error("pixel_values: expected (B, 3, H, W) or (B, T, 3, H, W), got " + std::to_string(t.ndim) +
                " dimensions");
  p.temporal = t.ndim == 5;
  if (p.temporal)
    pixels.check().shape({&B, &T, &C, &H, &W});
  else
    pixels.check().shape({&B, &C, &H, &W});
  p.data = t.ptr<float>();
  p.images = B.value;
  p.frames = p.temporal ? T.value : 1;
  p.height = H.value;
  p.width = W.value;
  return p;
}

py::tuple keys_values(const Prefix& p, int64_t layer) {
  const auto num_layers = static_cast<int64_t>(p.layers.size());
  if (layer < 0 || layer >= num_layers)
    throw Error("layer: expected 0 to " + std::to_string(num_layers - 1) + ", got " + std::to_string(layer));
  const cpu::KeyValues& kv = p.layers[static_cast<size_t>(layer)];
  py::array_t<float> k = empty({kv.heads, kv.tokens, kv.head_dim}), v = empty({kv.heads, kv.tokens, kv.head_dim});
  kv.unpack(k.mutable_data(), v.mutable_data());
  return py::make_tuple(k, v);
}

py::list encode(const Engine& engine, const py::object& pixel_values, bool interpolate_positions) {
  const Array pixels(pixel_values, "pixel_values");
  const PixelBatch batch = pixel_batch(pixels, interpolate_positions);
  std::vector<PrefixPtr> prefixes;
  {
    py::gil_scoped_release release;
    prefixes = engine.encode(batch, poll_signals);
  }
  py::list out;  // pybind11 knows no pointers to const; the bound class offers no way to change a prefix
  for (const PrefixPtr& p : prefixes) out.append(std::const_pointer_cast<Prefix>(p));
  return out;
}

py::list generate(const Engine& engine, const py::object& prefixes, const py::object& prompts, const py::dict& options,
                  const py::object& on_token) {
  const search::SearchOptions native = search_options(options);
  const std::vector<PrefixPtr> rows = prefix_list(prefixes);
  const TokenLists ids = token_lists(prompts, "prompts");
  Engine::OnToken report;
  if (!on_token.is_none())
    report = [&](int32_t row, int32_t token) {
      py::gil_scoped_acquire acquire;
      py::list tokens;
      tokens.append(token);
      const py::object answer = on_token(row, tokens);
      return answer.is_none() || answer.cast<bool>();
    };
  std::vector<std::vector<search::Result>> results;
  {
    py::gil_scoped_release release;
    results = engine.generate(rows, ids, native, report, poll_signals);
  }
  return result_lists(results);
}

py::list score(const Engine& engine, const py::object& prefixes, const py::object& sequences) {
  const std::vector<PrefixPtr> rows = prefix_list(prefixes);
  const TokenLists ids = token_lists(sequences, "sequences");
  std::vector<std::vector<float>> scores;
  {
    py::gil_scoped_release release;
    scores = engine.score(rows, ids, poll_signals);
  }
  py::list out;
  for (const std::vector<float>& s : scores)
    out.append(py::array_t<float>(static_cast<py::ssize_t>(s.size()), s.data()));
  return out;
}

// Per sequence its logits (tokens, V), views of one array.
py::list logits(const Engine& engine, const py::object& prefixes, const py::object& sequences) {
  const std::vector<PrefixPtr> rows = prefix_list(prefixes);
  const TokenLists ids = token_lists(sequences, "sequences");
  cpu::Buffer values;
  {
    py::gil_scoped_release release;
    values = engine.logits(rows, ids, poll_signals);
  }
  const int64_t vocab = engine.config().vocab_size;
  const auto tokens = static_cast<py::ssize_t>(values.bytes() / sizeof(float)) / vocab;
  const py::array all = take(std::move(values), {tokens, vocab});
  py::list out;
  py::ssize_t first = 0;
  for (const std::vector<int32_t>& sequence : ids) {
    const auto stop = first + static_cast<py::ssize_t>(sequence.size());
    out.append(all[py::slice(first, stop, 1)]);
    first = stop;
  }
  return out;
}

py::array attend(const Engine& engine, const py::object& prefix, const py::object& sequence) {
  const PrefixPtr image = prefix_list(py::make_tuple(prefix)).front();
  const std::vector<int32_t> ids = token_lists(py::make_tuple(sequence), "sequences").front();
  cpu::Buffer out;
  {
    py::gil_scoped_release release;
    out = engine.attend(image, ids);
  }
  return take(std::move(out), {static_cast<py::ssize_t>(ids.size()), image->tokens});
}

py::array features(const Engine& engine, const py::object& pixel_values, bool interpolate_positions) {
  const Array pixels(pixel_values, "pixel_values");
  const PixelBatch batch = pixel_batch(pixels, interpolate_positions);
  cpu::Buffer out;
  {
    py::gil_scoped_release release;
    out = engine.features(batch);
  }
  const VisionConfig& c = engine.config().vision;
  return take(std::move(out), {batch.images, batch.frames * frame_tokens(c, batch), c.hidden_size});
}

py::dict stats(const Engine& engine) {
  py::dict out;
  out["encoded_images"] = engine.stats().encoded_images.load();
  out["prefill_tokens"] = engine.stats().prefill_tokens.load();
  out["decode_steps"] = engine.stats().decode_steps.load();
  return out;
}

}  // namespace

void bind_engine(py::module_& m) {
  using py::arg;
  py::class_<Prefix, std::shared_ptr<Prefix>>(m, "Prefix", "Keys and values of one image in every decoder layer.")
      .def_property_readonly("num_tokens", [](const Prefix& p) { return p.tokens; })
      .def_property_readonly("nbytes", &Prefix::bytes)
      .def("keys_values", keys_values, arg("layer"), "K and V of a layer, each (heads, tokens, head_dim).");

  py::class_<Engine>(m, "CpuEngine")
      .def(py::init(&make_engine), arg("config"), arg("weights"), arg("dtype") = "float32", arg("num_threads") = 0,
           arg("isa") = "", arg("two_stage_head") = false)
      .def_property_readonly("isa", [](const Engine& e) { return cpu::isa_name(e.isa()); })
      .def_property_readonly("dtype", [](const Engine& e) { return weight_format_name(e.format()); })
      .def_property_readonly("num_threads", &Engine::num_threads)
      .def_property_readonly("nbytes", &Engine::bytes)
      .def_property_readonly("stats", stats)
      .def("encode", encode, arg("pixel_values"), arg("interpolate_positions") = false)
      .def("features", features, arg("pixel_values"), arg("interpolate_positions") = false)
      .def("generate", generate, arg("prefixes"), arg("prompts"), arg("options"), arg("on_token") = py::none())
      .def("score", score, arg("prefixes"), arg("sequences"))
      .def("attend", attend, arg("prefix"), arg("sequence"))
      .def("logits", logits, arg("prefixes"), arg("sequences"));
}

}  // namespace gitfast::bindings
