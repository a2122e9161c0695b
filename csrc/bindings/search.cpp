// Bindings of the search: options and token lists from Python, results back.
#include "search/search.h"

#include <pybind11/stl.h>

#include <limits>
#include <set>
#include <type_traits>

#include "arrays.h"
#include "bindings.h"
#include "instances.h"
#include "options.h"
#include "search/beam.h"
#include "search/options.h"
#include "search/sampling.h"

namespace gitfast::bindings {
namespace {

using search::EarlyStopping;
using search::LengthPenaltyForm;
using search::Search;
using search::SearchOptions;
using search::Tokens;

[[noreturn]] void reject(const std::string& name, const char* expected, const py::handle& value) {
  throw py::type_error(name + ": expected " + expected + ", got " + shown(value));
}

// To Python a bool is an int, but as a count or a token id True is a mistake.
template <class T>
T integer(const py::handle& value, const std::string& name) {
  py::object index;
  if (!py::isinstance<py::bool_>(value)) index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    PyErr_Clear();
    reject(name, "an integer", value);
  }
  try {
    return index.cast<T>();
  } catch (const py::cast_error&) {
    throw Error(name + ": expected " + std::to_string(std::numeric_limits<T>::min()) + " to " +
                std::to_string(std::numeric_limits<T>::max()) + ", got " + shown(index));
  }
}

double number(const py::handle& value, const std::string& name) {
  const double out = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred() || py::isinstance<py::bool_>(value)) {
    PyErr_Clear();
    reject(name, "a number", value);
  }
  return out;
}

// An array compares with a text number by number, so only texts are compared.
bool is_text(const py::object& value, const char* text) {
  return py::isinstance<py::str>(value) && value.equal(py::str(text));
}

// True for ordered elements; text and bytes have them too, but are no ids.
bool is_sequence(const py::handle& value) {
  if (py::isinstance<py::array>(value)) return py::reinterpret_borrow<py::array>(value).ndim() > 0;
  return py::isinstance<py::sequence>(value) && !py::isinstance<py::str>(value) && !py::isinstance<py::bytes>(value) &&
         !PyByteArray_Check(value.ptr()) && !PyMemoryView_Check(value.ptr());
}

// The fields of a dict, each asked for once by name; what nobody asked for is an unknown option.
class Fields {
 public:
  explicit Fields(const py::dict& dict) : dict_(dict) {}

  template <class T>
  void read(const char* name, T& out) {
    constexpr bool kList = std::is_same_v<T, Tokens> || std::is_same_v<T, std::vector<Tokens>>;
    const py::object value = kList ? take(name) : take_given(name);
    if (!value) return;
    if constexpr (std::is_same_v<T, bool>) {
      if (!py::isinstance<py::bool_>(value)) reject(name, "True or False", value);
      out = value.cast<bool>();
    } else if constexpr (std::is_integral_v<T>) {
      out = integer<T>(value, name);
    } else if constexpr (std::is_floating_point_v<T>) {
      out = number(value, name);
    } else if constexpr (std::is_same_v<T, Tokens>) {
      out = token_list(value, name);
    } else {
      out = token_lists(value, name);
    }
  }
  template <class T>
  void read(const char* name, std::optional<T>& out) {
    if (const py::object value = take(name)) out = integer<T>(value, name);
  }
  // The value of a field, or null where it is absent or None.
  py::object take(const char* name) {
    py::object value = take_given(name);
    return value && value.is_none() ? py::object() : value;
  }
  // Or null where it is absent.
  py::object take_given(const char* name) {
    known_.insert(name);
    return dict_.contains(name) ? py::object(dict_[name]) : py::object();
  }
  void reject_unknown() const {
    for (const auto& [name, value] : dict_) {
      const char* text = py::isinstance<py::str>(name) ? PyUnicode_AsUTF8(name.ptr()) : nullptr;
      PyErr_Clear();  // of a surrogate, which no known name has
      if (!text || !known_.count(text)) throw py::type_error("options: unknown option " + shown(name));
    }
  }

 private:
  const py::dict& dict_;
  std::set<std::string> known_;
};

void read_forms(Fields& fields, SearchOptions& o) {
  if (const py::object form = fields.take("length_penalty_form")) {
    if (is_text(form, "paper"))
      o.length_penalty_form = LengthPenaltyForm::paper;
    else if (!is_text(form, "transformers"))
      throw Error("length_penalty_form: expected 'transformers' or 'paper', got " + shown(form));
  }
  if (const py::object stopping = fields.take("early_stopping")) {
    if (py::isinstance<py::bool_>(stopping))
      o.early_stopping = stopping.cast<bool>() ? EarlyStopping::yes : EarlyStopping::no;
    else if (is_text(stopping, "never"))
      o.early_stopping = EarlyStopping::never;
    else
      throw Error("early_stopping: expected True, False or 'never', got " + shown(stopping));
  }
}

void stop(Search& search, std::optional<int32_t> item) {
  if (!item) return search.stop();
  const auto items = static_cast<int32_t>(search.num_items());
  if (*item < 0 || *item >= items)
    throw Error("item: expected 0 to " + std::to_string(items - 1) + ", got " + std::to_string(*item));
  search.stop(*item);
}

void advance(Search& search, const py::object& object) {
  const Array logits(object, "logits");
  Dim R(search.num_rows()), V(search.vocab_size());
  logits.floats().shape({&R, &V});
  const TensorView& t = logits.view();
  if (t.shape[0] > 0 && t.strides[1] != 1) throw Error("logits: expected rows without gaps between their values");
  search.advance(logits.data(), t.strides[0]);
}

// In one argument, lists within it together. A range, or one list given many times, holds more than fits any memory.
constexpr size_t kMaxTokenIds = size_t{1} << 22;

void check_count(size_t count, const std::string& argument) {
  if (count > kMaxTokenIds) throw Error(argument + ": expected at most " + std::to_string(kMaxTokenIds) + " token ids");
}

// A list in an argument, of which `ids` were read before.
Tokens read_tokens(const py::handle& value, const std::string& name, const std::string& argument, size_t& ids) {
  if (!is_sequence(value)) reject(name, "token ids", value);
  Tokens out;
  for (const py::handle token : value) {
    check_count(++ids, argument);
    try {
      out.push_back(integer<int32_t>(token, name));
    } catch (const Error&) {
      throw Error(name + ": token id " + shown(token) + " is outside the vocabulary");
    }
  }
  return out;
}

}  // namespace

Tokens token_list(const py::handle& value, const std::string& name) {
  size_t ids = 0;
  return read_tokens(value, name, name, ids);
}

std::vector<Tokens> token_lists(const py::handle& value, const std::string& name) {
  if (!is_sequence(value)) reject(name, "sequences of token ids", value);
  std::vector<Tokens> out;
  size_t ids = 0;
  for (const py::handle row : value) {
    check_count(out.size() + 1, name);  // of empty ones, too
    out.push_back(read_tokens(row, name + "[" + std::to_string(out.size()) + "]", name, ids));
  }
  return out;
}

SearchOptions search_options(const py::dict& dict) {
  SearchOptions o;
  Fields fields(dict);
  fields.read("max_new_tokens", o.max_new_tokens);
  fields.read("min_new_tokens", o.min_new_tokens);
  fields.read("num_beams", o.num_beams);
  fields.read("num_return_sequences", o.num_return_sequences);
  fields.read("length_penalty", o.length_penalty);
  fields.read("do_sample", o.do_sample);
  fields.read("temperature", o.temperature);
  fields.read("top_k", o.top_k);
  fields.read("top_p", o.top_p);
  fields.read("min_p", o.min_p);
  fields.read("seed", o.seed);
  fields.read("repetition_penalty", o.repetition_penalty);
  fields.read("no_repeat_ngram_size", o.no_repeat_ngram_size);
  fields.read("ban_last_token", o.ban_last_token);
  fields.read("bad_words_ids", o.bad_words);
  fields.read("suppress_tokens", o.suppress_tokens);
  fields.read("begin_suppress_tokens", o.begin_suppress_tokens);
  fields.read("forced_bos_token_id", o.forced_bos);
  fields.read("forced_eos_token_id", o.forced_eos);
  if (const py::object eos = fields.take("eos_token_id"))
    o.eos = PyIndex_Check(eos.ptr()) ? Tokens{integer<int32_t>(eos, "eos_token_id")} : token_list(eos, "eos_token_id");
  if (const py::object allowed = fields.take("allowed_token_ids")) {
    o.allowed = token_lists(allowed, "allowed_token_ids");
    if (o.allowed.empty()) throw Error("allowed_token_ids: expected None or at least one continuation, got none");
  }
  read_forms(fields, o);
  fields.reject_unknown();
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

// For a search on a device: the keys of each prompt's samples, and the divisor of beam scores of each length.
static std::vector<int64_t> sample_keys(const py::dict& options, const py::object& prompts) {
  const SearchOptions o = search_options(options);
  search::check(o, std::numeric_limits<int32_t>::max());  // bounds their number
  std::vector<int64_t> keys;
  for (const Tokens& prompt : token_lists(prompts, "prompts")) {
    const uint64_t seed = search::seed_of_item(o);
    for (int32_t sample = 0; sample < o.num_return_sequences; ++sample)
      keys.push_back(
          static_cast<int64_t>(search::sample_key(seed, prompt.data(), prompt.size(), static_cast<uint64_t>(sample))));
  }
  return keys;
}

// Throws as the constructor of Search does, and makes none.
static void check_search(const py::dict& options, const py::object& prompts, int32_t vocab_size) {
  search::check(search_options(options), vocab_size);
  search::check_prompts(token_lists(prompts, "prompts"), vocab_size);
}

static std::vector<float> length_norms(const py::dict& options, int32_t longest) {
  constexpr int32_t kLongest = 1 << 20;  // no model has as many positions
  if (longest < 0 || longest > kLongest)
    throw Error("longest: expected 0 to " + std::to_string(kLongest) + ", got " + std::to_string(longest));
  const SearchOptions o = search_options(options);
  std::vector<float> norms;
  for (int32_t length = 0; length <= longest; ++length) norms.push_back(search::length_norm(o, length));
  return norms;
}

// Calls hold the GIL: they are short, and it keeps two threads from one search.
void bind_search(py::module_& m) {
  using py::arg;
  py::class_<Search> search(m, "Search", "Logits in, tokens out; see gitfast.search.");
  require_init(search);
  search
      .def(py::init([](const py::dict& options, const py::object& prompts, int32_t vocab_size) {
             return Search(search::make_rules(search_options(options), vocab_size), token_lists(prompts, "prompts"));
           }),
           arg("options"), arg("prompts"), arg("vocab_size"))
      .def_property_readonly("done", method(&Search::done))
      .def_property_readonly("vocab_size", method(&Search::vocab_size))
      .def_property_readonly("num_rows", method(&Search::num_rows))
      .def_property_readonly("tokens", method(&Search::tokens))
      .def_property_readonly("parents", method(&Search::parents))
      .def_property_readonly("items", method(&Search::items))
      .def("advance", advance, arg("logits"))
      .def("stop", stop, arg("item") = py::none())
      .def("results", [](const Search& s) { return result_lists(s.results()); });
  m.def("check_search", &check_search, arg("options"), arg("prompts"), arg("vocab_size"));
  m.def("sample_keys", &sample_keys, arg("options"), arg("prompts"));
  m.def("length_norms", &length_norms, arg("options"), arg("longest"));
}

}  // namespace gitfast::bindings
