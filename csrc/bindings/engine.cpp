// Bindings of the CPU engine: configuration, calls, running batch, cancellation, and the checks other engines share.
#include "cpu/engine.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <mutex>

#include "arrays.h"
#include "bindings.h"
#include "cpu/arguments.h"
#include "formats.h"
#include "gil.h"
#include "instances.h"
#include "options.h"

namespace gitfast::bindings {
namespace {

using cpu::CancelFlag;
using cpu::CancelFlagPtr;
using cpu::Control;
using cpu::Decoding;
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
                                    int num_threads, const std::string& isa, bool two_stage_head, int num_lanes) {
  const cpu::WeightFormat format = weight_format_named(dtype);
  const ModelConfig model = model_config(config);
  const cpu::Isa chosen = cpu::choose_isa(isa);
  const cpu::Crews crews = cpu::choose_crews(num_lanes, num_threads);
  py::object held;  // the array behind the last view
  WithoutGil released;
  const WeightSource source = [&](const std::string& name) {
    TensorView view;
    released.with_gil([&] {
      held = py::none();  // before the next one is made
      held = weights[py::str(name)];
      view = view_of(as_array(held, name.c_str()), name.c_str());
    });
    return view;
  };
  return std::make_unique<Engine>(model, source, format, crews, chosen, two_stage_head);
}

PrefixPtr prefix_of(const py::handle& prefix, const std::string& name) {
  if (!prefix.is_none() && !py::isinstance<Prefix>(prefix))
    throw py::type_error(name + ": expected a prefix of this engine or None, got " + type_name(prefix));
  prefix.cast<Prefix*>();  // throws for one that was never initialised
  return prefix.cast<std::shared_ptr<Prefix>>();
}

std::vector<PrefixPtr> prefix_list(const py::object& object) {
  if (!py::isinstance<py::sequence>(object))
    throw py::type_error("prefixes: expected a sequence of prefixes, got " + shown(object));
  std::vector<PrefixPtr> out;
  for (const py::handle prefix : object)
    out.push_back(prefix_of(prefix, "prefixes[" + std::to_string(out.size()) + "]"));
  return out;
}

// The ways to end a call of this thread early: `cancel`, or Ctrl-C, which Python hands to its main thread alone.
// The others need not wait for the GIL to ask.
Control control_of(const CancelFlag* cancel, WithoutGil*& gil) {
  Control control;
  control.cancel = CancelFlagPtr(CancelFlagPtr(), cancel);  // the arguments of the call keep it
  const py::object main_thread = py::module_::import("threading").attr("main_thread")();
  if (main_thread.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident())
    control.poll = [&gil] {
      gil->with_gil([] {
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      });
    };
  return control;
}

// Runs work(control) without the GIL, which `gil` gives back for a while.
template <class Run>
auto native_call(const CancelFlag* cancel, WithoutGil*& gil, const Run& work) {
  const Control control = control_of(cancel, gil);
  WithoutGil released;
  gil = &released;
  return work(control);
}

template <class Run>
auto native_call(const CancelFlag* cancel, const Run& work) {
  WithoutGil* gil = nullptr;
  return native_call(cancel, gil, work);
}

// None goes on; anything else goes on if it is true.
bool goes_on(const py::object& answer) {
  if (answer.is_none()) return true;
  const int truth = PyObject_IsTrue(answer.ptr());
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

PixelBatch pixel_batch(const TensorView& t, const Check& check, bool interpolate_positions) {
  Dim B("B"), T("T"), C(3), H("H"), W("W");
  PixelBatch p;
  p.interpolate_positions = interpolate_positions;
  if (t.ndim != 4 && t.ndim != 5)
    throw Error("pixel_values: expected (B, 3, H, W) or (B, T, 3, H, W), got " + std::to_string(t.ndim) +
                " dimensions");
  p.temporal = t.ndim == 5;
  if (p.temporal)
    check.shape({&B, &T, &C, &H, &W});
  else
    check.shape({&B, &C, &H, &W});
  p.data = t.ptr<float>();
  p.images = B.value;
  p.frames = p.temporal ? T.value : 1;
  p.height = H.value;
  p.width = W.value;
  return p;
}

PixelBatch pixel_batch(const Array& pixels, bool interpolate_positions) {
  pixels.floats().contiguous();
  return pixel_batch(pixels.view(), pixels.check(), interpolate_positions);
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

py::list encode(const Engine& engine, const py::object& pixel_values, bool interpolate_positions,
                const CancelFlag* cancel) {
  const Array pixels(pixel_values, "pixel_values");
  const PixelBatch batch = pixel_batch(pixels, interpolate_positions);
  const std::vector<PrefixPtr> prefixes =
      native_call(cancel, [&](const Control& control) { return engine.encode(batch, control); });
  py::list out;  // pybind11 knows no pointers to const; the bound class offers no way to change a prefix
  for (const PrefixPtr& p : prefixes) out.append(std::const_pointer_cast<Prefix>(p));
  return out;
}

py::list generate(const Engine& engine, const py::object& prefixes, const py::object& prompts, const py::dict& options,
                  const py::object& on_token, const CancelFlag* cancel) {
  const search::SearchOptions native = search_options(options);
  const std::vector<PrefixPtr> rows = prefix_list(prefixes);
  const TokenLists ids = token_lists(prompts, "prompts");
  if (!on_token.is_none() && !PyCallable_Check(on_token.ptr()))
    throw py::type_error("on_token: expected a function or None, got " + shown(on_token));
  WithoutGil* gil = nullptr;
  cpu::OnTokens report;
  if (!on_token.is_none())
    report = [&](int32_t row, const std::vector<int32_t>& tokens) {
      bool go_on = true;
      gil->with_gil([&] { go_on = goes_on(on_token(row, py::cast(tokens))); });
      return go_on;
    };
  return result_lists(native_call(
      cancel, gil, [&](const Control& control) { return engine.generate(rows, ids, native, report, control); }));
}

py::list score(const Engine& engine, const py::object& prefixes, const py::object& sequences,
               const CancelFlag* cancel) {
  const std::vector<PrefixPtr> rows = prefix_list(prefixes);
  const TokenLists ids = token_lists(sequences, "sequences");
  const std::vector<std::vector<float>> scores =
      native_call(cancel, [&](const Control& control) { return engine.score(rows, ids, control); });
  py::list out;
  for (const std::vector<float>& s : scores)
    out.append(py::array_t<float>(static_cast<py::ssize_t>(s.size()), s.data()));
  return out;
}

// Per sequence its logits (tokens, V), views of one array.
py::list logits(const Engine& engine, const py::object& prefixes, const py::object& sequences,
                const CancelFlag* cancel) {
  const std::vector<PrefixPtr> rows = prefix_list(prefixes);
  const TokenLists ids = token_lists(sequences, "sequences");
  cpu::Buffer values = native_call(cancel, [&](const Control& control) { return engine.logits(rows, ids, control); });
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
  cpu::Buffer out = native_call(nullptr, [&](const Control&) { return engine.attend(image, ids); });
  return take(std::move(out), {static_cast<py::ssize_t>(ids.size()), image->tokens});
}

py::array features(const Engine& engine, const py::object& pixel_values, bool interpolate_positions,
                   const CancelFlag* cancel) {
  const Array pixels(pixel_values, "pixel_values");
  const PixelBatch batch = pixel_batch(pixels, interpolate_positions);
  cpu::Buffer out = native_call(cancel, [&](const Control& control) { return engine.features(batch, control); });
  const VisionConfig& c = engine.config().vision;
  return take(std::move(out), {batch.images, batch.frames * frame_tokens(c, batch), c.hidden_size});
}

// The running batch of one caller. Threads take turns.
class OwnDecoding {
  template <class Fn>
  auto exclusively(const Fn& fn) {
    if (cpu::fork_count() != forks_)
      throw Error("decoding: begun before a fork, and goes on in the parent process alone");
    const WithoutGil released;
    const std::lock_guard<std::mutex> lock(mutex_);
    return fn();
  }

 public:
  // Keeps the engine's object: pybind11's keep_alive reads memory that is none where the argument is no engine.
  explicit OwnDecoding(const Engine& engine)
      : object_(py::cast(engine, py::return_value_policy::reference)), engine_(engine), decoding_(engine.decoding()) {}

  int64_t add(const py::object& prefix, const py::object& prompt, const py::dict& options) {
    const search::SearchOptions native = search_options(options);
    const PrefixPtr own = prefix_of(prefix, "prefix");
    const search::Tokens ids = token_list(prompt, "prompt");
    return exclusively([&] {
      const search::RulesPtr rules = search::make_rules(native, static_cast<int32_t>(engine_.config().vocab_size));
      engine_.check_prompt(own, ids, native);
      return decoding_->generate(own, ids, rules);
    });
  }
  bool cancel(int64_t handle) {
    return exclusively([&] { return decoding_->cancel(handle); });
  }
  py::list step() {
    std::vector<Decoding::Event> events;
    exclusively([&] {
      events.reserve(static_cast<size_t>(decoding_->sequences()));  // before it begins: none is lost for want of memory
      for (Decoding::Event& event : decoding_->step()) events.push_back(std::move(event));
    });
    py::list out;
    for (const Decoding::Event& event : events) {
      py::list tokens;
      if (event.token >= 0) tokens.append(event.token);
      py::object results = py::none(), error = py::none();
      if (event.error)
        error = exception_of(event.error);
      else if (event.done)
        results = result_lists({event.results})[0];
      out.append(py::make_tuple(event.handle, tokens, results, error));
    }
    return out;
  }
  int64_t size() {
    return exclusively([&] { return decoding_->sequences(); });
  }

 private:
  static py::object exception_of(const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      return py::reinterpret_borrow<py::object>(PyExc_ValueError)(e.what());
    } catch (const std::bad_alloc& e) {
      return py::reinterpret_borrow<py::object>(PyExc_MemoryError)(e.what());
    } catch (const std::exception& e) {
      return py::reinterpret_borrow<py::object>(PyExc_RuntimeError)(e.what());
    }
  }

  const py::object object_;
  const Engine& engine_;
  const int forks_ = cpu::fork_count();
  std::mutex mutex_;
  std::unique_ptr<Decoding> decoding_;
};

std::unique_ptr<CancelFlag> make_cancel_flag(std::optional<double> timeout) {
  if (!timeout) return std::make_unique<CancelFlag>();
  constexpr double kLongest = 1e9;  // seconds: more is never reached, and would overflow the clock
  if (!(*timeout >= 0)) throw Error("timeout: expected None or 0 or more seconds, got " + std::to_string(*timeout));
  const std::chrono::duration<double> time(std::min(*timeout, kLongest));
  return std::make_unique<CancelFlag>(cpu::Clock::now() + std::chrono::duration_cast<cpu::Clock::duration>(time));
}

py::dict stats(const Engine& engine) {
  py::dict out;
  out["encoded_images"] = engine.stats().encoded_images.load();
  out["prefill_tokens"] = engine.stats().prefill_tokens.load();
  out["decode_steps"] = engine.stats().decode_steps.load();
  out["decode_rows"] = engine.stats().decode_rows.load();
  out["step_seconds"] = 1e-9 * static_cast<double>(engine.stats().step_ns.load());
  out["encode_seconds"] = 1e-9 * static_cast<double>(engine.stats().encode_ns.load());
  return out;
}

}  // namespace

// The checks of the CPU engine, for engines in Python: float32, or also uint8, (B, 3, H, W) or (B, T, 3, H, W).
static void check_pixels(const py::object& pixel_values, bool take_bytes, bool interpolate_positions,
                         int64_t image_size, int64_t patch_size, int64_t num_frames) {
  const Array pixels(pixel_values, "pixel_values");
  const DType got = pixels.view().dtype;
  if (take_bytes && got != DType::u8 && got != DType::f32)
    throw Error(std::string("pixel_values: expected float32 or uint8, got ") + dtype_name(got));
  if (got != DType::u8 || !take_bytes) pixels.floats();
  cpu::check_pixels(pixel_batch(pixels.view(), pixels.check(), interpolate_positions),
                    {image_size, patch_size, num_frames});
}

static void check_texts(const py::object& texts, const std::string& name, int64_t new_tokens, int64_t vocab_size,
                        int64_t max_positions) {
  cpu::check_texts(token_lists(texts, name), name.c_str(), new_tokens, {vocab_size, max_positions});
}

void bind_engine(py::module_& m) {
  using py::arg;
  m.def("check_pixels", &check_pixels, arg("pixel_values"), arg("take_bytes"), arg("interpolate_positions"),
        arg("image_size"), arg("patch_size"), arg("num_frames"));
  m.def("check_texts", &check_texts, arg("texts"), arg("name"), arg("new_tokens"), arg("vocab_size"),
        arg("max_positions"));
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    const auto raise = [](const char* type, const std::exception& error) {
      const py::object errors = py::module_::import("gitfast.errors");
      PyErr_SetString(errors.attr(type).ptr(), error.what());
    };
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const cpu::Cancelled& error) {
      raise("CancelledError", error);
    } catch (const cpu::DeadlinePassed& error) {
      raise("DeadlineError", error);
    }
  });

  py::class_<CancelFlag> flag(m, "CancelFlag", "What gitfast.CancelToken sets.");
  flag.def(py::init(&make_cancel_flag), arg("timeout") = py::none())
      .def("cancel", method(&CancelFlag::cancel))
      .def("check", method(&CancelFlag::check))
      .def_property_readonly("cancelled", method(&CancelFlag::cancelled))
      .def_property_readonly("late", method(&CancelFlag::late));

  py::class_<Prefix, std::shared_ptr<Prefix>> prefix(m, "Prefix",
                                                     "Keys and values of one image in every decoder layer.");
  prefix.def_property_readonly("num_tokens", [](const Prefix& p) { return p.tokens; })
      .def_property_readonly("nbytes", method(&Prefix::bytes))
      .def("keys_values", keys_values, arg("layer"), "K and V of a layer, each (heads, tokens, head_dim).");

  py::class_<OwnDecoding> decoding(m, "Decoding", "See gitfast.engines.base.Decoding.");
  decoding.def("add", &OwnDecoding::add, arg("prefix"), arg("prompt"), arg("options"))
      .def("cancel", &OwnDecoding::cancel, arg("handle"))
      .def("step", method(&OwnDecoding::step))
      .def("__len__", method(&OwnDecoding::size));

  require_init(flag);
  require_init(prefix);
  require_init(decoding);
  const auto never = py::none();
  py::class_<Engine> engine(m, "CpuEngine");
  engine
      .def(py::init(&make_engine), arg("config"), arg("weights"), arg("dtype") = "float32", arg("num_threads") = 0,
           arg("isa") = "", arg("two_stage_head") = false, arg("num_lanes") = 0)
      .def_property_readonly("isa", [](const Engine& e) { return cpu::isa_name(e.isa()); })
      .def_property_readonly("dtype", [](const Engine& e) { return weight_format_name(e.format()); })
      .def_property_readonly("num_threads", method(&Engine::num_threads))
      .def_property_readonly("num_lanes", method(&Engine::num_lanes))
      .def_property_readonly("nbytes", method(&Engine::bytes))
      .def_property_readonly("stats", stats)
      .def("encode", encode, arg("pixel_values"), arg("interpolate_positions") = false, arg("cancel") = never)
      .def("features", features, arg("pixel_values"), arg("interpolate_positions") = false, arg("cancel") = never)
      .def("generate", generate, arg("prefixes"), arg("prompts"), arg("options"), arg("on_token") = py::none(),
           arg("cancel") = never)
      .def("score", score, arg("prefixes"), arg("sequences"), arg("cancel") = never)
      .def("logits", logits, arg("prefixes"), arg("sequences"), arg("cancel") = never)
      .def("attend", attend, arg("prefix"), arg("sequence"))
      .def("decoding", [](const Engine& e) { return std::make_unique<OwnDecoding>(e); });
  require_init(engine);
}

}  // namespace gitfast::bindings
