// The search on the device as Python functions of its state: an object whose attributes are arrays and sizes.
#pragma once

#include <memory>
#include <vector>

#include "cuda/search.h"
#include "cuda_arguments.h"

namespace gitfast::bindings {

// Reads the state; its arrays live as long as this.
class SearchArguments {
 public:
  SearchArguments(Device kind, const py::object& state) : state_(state), common_(kind, keep("ids")) {
    cuda::SearchState& s = call.state;
    s.rows_per_item = number("rows_per_item");
    s.texts_per_prompt = number("texts_per_prompt");
    s.eos = static_cast<int32_t>(number("eos"));
    Dim items("items"), rows("R"), texts("texts"), prompts("prompts"), text("max_text"), steps("max_steps"), one(1);
    Dim settings(cuda::kSettings);
    s.ids = ints("ids", {&rows});
    s.positions = ints("positions", {&rows});
    s.text_len = ints("text_len", {&rows});
    s.slots = ints("slots", {&rows, &text});
    s.image = ints("image", {&rows});
    s.text = ints("text", {&items});
    s.steps = ints("steps", {&items});
    s.ended = ints("ended", {&texts});
    s.next_text = reinterpret_cast<uint32_t*>(ints("next_text", {&one}));
    s.num_ended = reinterpret_cast<uint32_t*>(ints("num_ended", {&one}));
    s.prompt_len = ints("prompt_len", {&prompts});
    s.last_tokens = ints("last_tokens", {&prompts});
    s.images = ints("images", {&prompts});
    s.settings = reinterpret_cast<const cuda::SearchSettings*>(ints("settings", {&settings}));
    Dim norms(text.value + 1);
    s.length_norms = floats("length_norms", {&norms});
    Dim records(s.rows_per_item * texts.value), three(3);
    s.tokens = ints("tokens", {&steps, &records});
    s.log_probs = floats("log_probs", {&steps, &records});
    if (has("tiles")) s.tiles = ints("tiles", {&items, &three});
    if (has("keys")) s.keys = static_cast<const int64_t*>(dense("keys", DType::i64, {&texts}));
    if (has("row_keys")) s.row_keys = static_cast<int64_t*>(dense("row_keys", DType::i64, {&rows}));
    if (s.row_keys && !s.keys) throw Error("row_keys: expected keys as well");
    if (s.rows_per_item > 1) {
      Dim beams(s.rows_per_item), words(cuda::kFinishedBeam);
      s.scores = floats("scores", {&rows});
      s.parents = ints("parents", {&steps, &records});
      s.finished = reinterpret_cast<cuda::FinishedBeam*>(ints("finished", {&texts, &beams, &words}));
    }
    s.items = items.value;
    s.texts = texts.value;
    s.max_text = text.value;
    s.max_steps = steps.value;
    require_product("rows_per_item", s.rows_per_item, items, rows);
    require_product("texts_per_prompt", s.texts_per_prompt, prompts, texts);
    call.device = common_.device;
  }

  void choices(const py::object& tokens, const py::object& log_probs, const py::object& drawn,
               const py::object& drawn_log_probs) {
    cuda::Choices& chosen = call.choices;
    Dim rows(call.state.items * call.state.rows_per_item), count("choices");
    chosen.tokens =
        static_cast<const int32_t*>(common_.dense(keep(tokens, "tokens"), "tokens", DType::i32, {&rows, &count}));
    chosen.log_probs = static_cast<const float*>(
        common_.dense(keep(log_probs, "log_probs"), "log_probs", DType::f32, {&rows, &count}));
    chosen.count = count.value;
    if (drawn.is_none() != drawn_log_probs.is_none())
      throw Error("drawn, drawn_log_probs: expected both or none of them");
    if (drawn.is_none()) return;
    chosen.drawn = static_cast<const int32_t*>(common_.dense(keep(drawn, "drawn"), "drawn", DType::i32, {&rows}));
    chosen.drawn_log_probs = static_cast<const float*>(
        common_.dense(keep(drawn_log_probs, "drawn_log_probs"), "drawn_log_probs", DType::f32, {&rows}));
  }

  cuda::SearchCall call;

 private:
  const Array& keep(const py::object& object, const char* name) {
    return *kept_.emplace_back(std::make_unique<Array>(object, name));
  }
  const Array& keep(const char* name) { return keep(state_.attr(name), name); }
  bool has(const char* name) const { return !state_.attr(name).is_none(); }
  int64_t number(const char* name) const { return state_.attr(name).cast<int64_t>(); }
  void* dense(const char* name, DType dtype, std::initializer_list<Dim*> shape) {
    return common_.dense(keep(name), name, dtype, shape);
  }
  int32_t* ints(const char* name, std::initializer_list<Dim*> shape) {
    return static_cast<int32_t*>(dense(name, DType::i32, shape));
  }
  float* floats(const char* name, std::initializer_list<Dim*> shape) {
    return static_cast<float*>(dense(name, DType::f32, shape));
  }
  static void require_product(const char* name, int64_t factor, const Dim& of, const Dim& all) {
    if (factor * of.value != all.value)
      throw Error(std::string(name) + ": expected " + std::to_string(all.value) + " in all, got " +
                  std::to_string(of.value) + " times " + std::to_string(factor));
  }

  py::object state_;
  std::vector<std::unique_ptr<Array>> kept_;
  Common common_;
};

inline void bind_cuda_search(py::module_& m, Device device) {
  m.def(
      "start_search",
      [device](const py::object& state, uintptr_t stream) {
        const SearchArguments arguments(device, state);
        py::gil_scoped_release release;
        cuda::start_search(arguments.call, reinterpret_cast<CUstream_st*>(stream));
      },
      py::arg("state"), py::arg("stream") = 0);
  m.def(
      "advance_search",
      [device](const py::object& state, const py::object& tokens, const py::object& log_probs, const py::object& drawn,
               const py::object& drawn_log_probs, bool overlap, uintptr_t stream) {
        SearchArguments arguments(device, state);
        arguments.choices(tokens, log_probs, drawn, drawn_log_probs);
        arguments.call.overlap = overlap;
        py::gil_scoped_release release;
        cuda::advance_search(arguments.call, reinterpret_cast<CUstream_st*>(stream));
      },
      py::arg("state"), py::arg("tokens"), py::arg("log_probs"), py::arg("drawn"), py::arg("drawn_log_probs"),
      py::arg("overlap") = false, py::arg("stream") = 0);
}

}  // namespace gitfast::bindings
