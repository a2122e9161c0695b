#include "search/search.h"

#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "options.h"

namespace gitfast::bindings {

using search::EarlyStopping;
using search::LengthPenaltyForm;
using search::Search;
using search::SearchOptions;

namespace {

template <class T>
void read(const py::dict& fields, const char* name, T& out) {
  if (!fields.contains(name)) return;
  const py::object value = fields[name];
  if (value.is_none()) return;
  const bool flag = py::isinstance<py::bool_>(value);  // to Python a bool is an int; a count of True is a mistake
  try {
    if (std::is_arithmetic_v<T> && flag != std::is_same_v<T, bool>) throw py::cast_error();
    out = value.cast<T>();
  } catch (const py::cast_error&) {
    throw Error(std::string(name) + ": unexpected value " + std::string(py::repr(value)));
  }
}

void read_optional(const py::dict& fields, const char* name, std::optional<int32_t>& out) {
  if (!fields.contains(name) || fields[name].is_none()) return;
  int32_t value = 0;
  read(fields, name, value);
  out = value;
}

}  // namespace

SearchOptions search_options(const py::dict& f) {
  SearchOptions o;
  read(f, "max_new_tokens", o.max_new_tokens);
  read(f, "min_new_tokens", o.min_new_tokens);
  read(f, "num_beams", o.num_beams);
  read(f, "num_return_sequences", o.num_return_sequences);
  read(f, "length_penalty", o.length_penalty);
  read(f, "do_sample", o.do_sample);
  read(f, "temperature", o.temperature);
  read(f, "top_k", o.top_k);
  read(f, "top_p", o.top_p);
  read(f, "min_p", o.min_p);
  read(f, "seed", o.seed);
  read(f, "repetition_penalty", o.repetition_penalty);
  read(f, "no_repeat_ngram_size", o.no_repeat_ngram_size);
  read(f, "ban_last_token", o.ban_last_token);
  read(f, "bad_words_ids", o.bad_words);
  read(f, "suppress_tokens", o.suppress_tokens);
  read(f, "begin_suppress_tokens", o.begin_suppress_tokens);
  read_optional(f, "forced_bos_token_id", o.forced_bos);
  read_optional(f, "forced_eos_token_id", o.forced_eos);
  read(f, "allowed_token_ids", o.allowed);
  read(f, "eos_token_id", o.eos);
  if (f.contains("length_penalty_form")) {
    std::string form;
    read(f, "length_penalty_form", form);
    if (form != "transformers" && form != "paper")
      throw Error("length_penalty_form: expected 'transformers' or 'paper', got '" + form + "'");
    o.length_penalty_form = form == "paper" ? LengthPenaltyForm::paper : LengthPenaltyForm::transformers;
  }
  if (f.contains("early_stopping")) {
    const py::object value = f["early_stopping"];
    if (py::isinstance<py::bool_>(value))
      o.early_stopping = value.cast<bool>() ? EarlyStopping::yes : EarlyStopping::no;
    else if (py::isinstance<py::str>(value) && value.cast<std::string>() == "never")
      o.early_stopping = EarlyStopping::never;
    else
      throw Error("early_stopping: expected True, False or 'never', got " + std::string(py::repr(value)));
  }
  return o;
}

py::list result_lists(const std::vector<std::vector<search::Result>>& results) {
  py::list out;
  for (const auto& item : results) {
    py::list sequences;
    for (const search::Result& r : item) {
      const char* reason = r.reason == search::FinishReason::stop ? "stop" : "length";
      sequences.append(py::make_tuple(r.tokens, r.logprobs, r.score, reason));
    }
    out.append(sequences);
  }
  return out;
}

void bind_search(py::module_& m) {
  using py::arg;
  py::class_<Search>(m, "Search")
      .def(py::init([](const py::dict& options, std::vector<std::vector<int32_t>> prompts, int32_t vocab_size) {
             return Search(search_options(options), std::move(prompts), vocab_size);
           }),
           arg("options"), arg("prompts"), arg("vocab_size"))
      .def_property_readonly("done", &Search::done)
      .def_property_readonly("num_rows", &Search::num_rows)
      .def_property_readonly("tokens", &Search::tokens)
      .def_property_readonly("parents", &Search::parents)
      .def_property_readonly("items", &Search::items)
      .def("stop", &Search::stop)
      .def("results", [](const Search& s) { return result_lists(s.results()); })
      .def(
          "advance",
          [](Search& s, const py::array& logits) {
            const TensorView t = floats(logits, "logits");
            Dim R(s.num_rows()), V(s.vocab_size());
            Check(t, "logits").shape({&R, &V});
            py::gil_scoped_release release;
            s.advance(t.ptr<float>(), V.value);
          },
          arg("logits"));
}

}  // namespace gitfast::bindings
