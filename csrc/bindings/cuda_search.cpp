// Bindings of the CUDA search kernels: the state of a search, its start and its steps.
#include "cuda_kernels.h"

namespace gitfast::bindings {

cuda::SearchState search_state(Arguments& a) {
  cuda::SearchState s;
  s.rows_per_slot = a.value<int64_t>("rows_per_slot");
  s.sequences_per_prompt = a.value<int64_t>("sequences_per_prompt");
  s.eos = a.value<int32_t>("eos");
  Dim slots("slots"), rows("R"), sequences("sequences"), prompts("prompts"), length("max_text"), steps("max_steps");
  Dim words_of_settings(cuda::kSettings), one(1), three(3);
  s.ids = a.ints("ids", {&rows});
  s.positions = a.ints("positions", {&rows});
  s.text_len = a.ints("text_len", {&rows});
  s.kv_index = a.ints("kv_index", {&rows, &length});
  s.image = a.ints("image", {&rows});
  s.sequence = a.ints("sequence", {&slots});
  s.steps = a.ints("steps", {&slots});
  s.ended = a.host_ints("ended", {&sequences});
  s.queue = a.ints("queue", {&sequences});
  s.queued = reinterpret_cast<uint32_t*>(a.ints("queued", {&one}));
  s.next_sequence = reinterpret_cast<uint32_t*>(a.ints("next_sequence", {&one}));
  s.num_ended = reinterpret_cast<uint32_t*>(a.ints("num_ended", {&one}));
  s.prompt_len = a.ints("prompt_len", {&prompts});
  s.last_tokens = a.ints("last_tokens", {&prompts});
  s.images = a.ints("images", {&prompts});
  s.settings = reinterpret_cast<const cuda::SearchSettings*>(a.ints("settings", {&prompts, &words_of_settings}));
  Dim records(s.rows_per_slot * sequences.value);
  s.tokens = a.ints("tokens", {&steps, &records});
  s.log_probs = a.floats("log_probs", {&steps, &records});
  if (a.has("tiles")) s.tiles = a.ints("tiles", {&slots, &three});
  if (a.has("keys")) s.keys = a.longs("keys", {&sequences});
  if (a.has("row_keys")) s.row_keys = a.longs("row_keys", {&rows});
  if (s.row_keys && !s.keys) throw Error("row_keys: expected keys as well");
  Dim beams(s.rows_per_slot), words(cuda::kFinishedBeam), norms(length.value + 1);
  if (s.rows_per_slot > 1) {
    s.length_norms = a.floats("length_norms", {&prompts, &norms});
    s.scores = a.floats("scores", {&rows});
    s.parents = a.ints("parents", {&steps, &records});
    s.finished = reinterpret_cast<cuda::FinishedBeam*>(a.ints("finished", {&sequences, &beams, &words}));
  }
  s.slots = slots.value;
  s.sequences = sequences.value;
  s.max_text = length.value;
  s.max_steps = steps.value;
  const auto require_product = [](const char* name, int64_t factor, const Dim& of, const Dim& all) {
    if (factor * of.value != all.value)
      throw Error(std::string(name) + ": expected " + std::to_string(all.value) + " in all, got " +
                  std::to_string(of.value) + " times " + std::to_string(factor));
  };
  require_product("rows_per_slot", s.rows_per_slot, slots, rows);
  require_product("sequences_per_prompt", s.sequences_per_prompt, prompts, sequences);
  return s;
}

namespace {

// The arguments of a call and the state within it, whose first array decides the device.
struct SearchArguments {
  SearchArguments(Device kind, const py::dict& given)
      : state(kind, given["state"].cast<py::dict>(), "ids"), call(state, given) {
    args.state = search_state(state);
    args.device = state.device();
    args.overlap = call.value<bool>("overlap", false);
    call.has("state");
  }

  void read_choices() {
    cuda::Choices& chosen = args.choices;
    Dim rows(args.state.slots * args.state.rows_per_slot), count("choices");
    chosen.tokens = call.ints("tokens", {&rows, &count});
    chosen.log_probs = call.floats("log_probs", {&rows, &count});
    chosen.count = count.value;
    if (!call.has_all_or_none({"drawn", "drawn_log_probs"})) return;
    chosen.drawn = call.ints("drawn", {&rows});
    chosen.drawn_log_probs = call.floats("drawn_log_probs", {&rows});
  }

  Arguments state, call;
  cuda::SearchCall args;
};

}  // namespace

void bind_cuda_search(py::module_& m, Device device) {
  m.def("start_search", [device](const py::kwargs& given) {
    SearchArguments search(device, given);
    enqueue(cuda::start_search, search.args, search.call);
  });
  m.def("advance_search", [device](const py::kwargs& given) {
    SearchArguments search(device, given);
    search.read_choices();
    enqueue(cuda::advance_search, search.args, search.call);
  });
}

}  // namespace gitfast::bindings
