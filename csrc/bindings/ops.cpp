// The CPU kernels as functions on arrays, behind gitfast/ops/cpu.py. Shapes are checked here, once.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/prefix.h"
#include "cpu/threads.h"
#include "formats.h"
#include "gil.h"
#include "instances.h"

namespace gitfast::bindings {
namespace {

using cpu::Activation;
using cpu::Buffer;

Buffer float_buffer(int64_t n) { return Buffer(static_cast<size_t>(n) * sizeof(float)); }

const cpu::Kernels& kernels_named(const std::string& isa) { return cpu::kernels_for(cpu::choose_isa(isa)); }

Activation activation_named(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "quick_gelu") return Activation::quick_gelu;
  if (name == "gelu") return Activation::gelu_erf;
  throw Error("activation: expected 'none', 'quick_gelu' or 'gelu', got '" + name + "'");
}

// fn over [0, n), on the pool where there is one.
void for_each_part(cpu::ThreadPool* pool, int64_t n, const std::function<void(int64_t, int64_t, int)>& fn) {
  if (pool) {
    pool->parallel_for(n, 1, fn);
  } else {
    fn(0, n, 0);
  }
}

class PackedWeight {
 public:
  PackedWeight(const py::object& weight, const py::object& bias, const std::string& dtype) {
    view_.format = weight_format_named(dtype);
    const Array w(weight, "weight");
    w.check().device(Device::cpu).shape({&n_, &k_}).contiguous();
    if (w.view().dtype != DType::f16) w.check().dtype(DType::f32);
    if (k_.value < 1) throw Error("weight: expected K >= 1, got 0");
    view_.n = n_.value;
    view_.k = k_.value;
    panels_ = Buffer(static_cast<size_t>(view_.num_panels() * view_.panel_words()) * sizeof(uint32_t));
    if (panels_.bytes() > 0) std::memset(panels_.data(), 0, panels_.bytes());
    if (cpu::is_int8(view_.format)) scales_ = float_buffer(n_.value);
    try {
      cpu::pack_linear_rows(w.view().data, w.view().dtype == DType::f16, n_.value, k_.value, 0, view_.format,
                            panels_.data(), scales_.floats());
    } catch (const Error& error) {
      throw Error(std::string("weight: ") + error.what());
    }
    if (!bias.is_none()) {
      const Array b(bias, "bias");
      b.floats().shape({&n_}).contiguous();
      bias_ = float_buffer(n_.value);
      std::copy(b.data(), b.data() + n_.value, bias_.floats());
    }
    view_.panels = panels_.data();
    view_.scales = scales_.floats();
    view_.bias = bias_.floats();
  }

  Dim n() const { return n_; }
  Dim k() const { return k_; }
  const cpu::PackedLinear& view() const { return view_; }
  size_t bytes() const { return panels_.bytes() + scales_.bytes() + bias_.bytes(); }

 private:
  Dim n_{"N"}, k_{"K"};
  Buffer panels_, scales_, bias_;
  cpu::PackedLinear view_;
};

// The caller's `out`, or a new array.
py::array_t<float> output(const py::object& out, const std::vector<py::ssize_t>& shape) {
  if (out.is_none()) return empty(shape);
  const py::array a = as_array(out, "out");
  const TensorView t = floats(a, "out");
  if (!a.writeable()) throw Error("out: expected a writeable array");
  if (!std::equal(shape.begin(), shape.end(), t.shape, t.shape + t.ndim))
    throw Error("out: expected shape " + std::string(py::str(py::tuple(py::cast(shape)))) + ", got " +
                std::string(py::str(a.attr("shape"))));
  return py::reinterpret_borrow<py::array_t<float>>(a);
}

// Rows of `a` may lie apart, as in a slice of columns; the elements of a row may not.
void check_dense_rows(const Array& a, const char* name) {
  const TensorView& t = a.view();
  const int last = t.ndim - 1;
  if (t.numel() == 0) return;
  if ((t.shape[last] > 1 && t.strides[last] != 1) || t.strides[0] < 0)
    throw Error(std::string(name) + ": expected rows of consecutive elements");
}

py::array linear(const py::object& x, const PackedWeight& weight, const py::object& residual,
                 const std::string& activation, const py::object& out, const std::string& isa, cpu::ThreadPool* pool) {
  Dim M("M"), N = weight.n(), K = weight.k();
  const Array xs(x, "x");
  xs.floats().shape({&M, &K});
  check_dense_rows(xs, "x");
  std::optional<Array> r;
  if (!residual.is_none()) {
    r.emplace(residual, "residual");
    r->floats().shape({&M, &N}).contiguous();
  }
  const cpu::Kernels& kernels = kernels_named(isa);
  const cpu::PackedLinear& w = weight.view();
  py::array_t<float> y = output(out, {M.value, N.value});
  cpu::LinearArgs args{xs.data(),
                       xs.view().strides[0],
                       nullptr,
                       M.value,
                       &w,
                       activation_named(activation),
                       r ? r->data() : nullptr,
                       y.mutable_data(),
                       N.value};
  if (M.value > 0 && N.value > 0) {
    const WithoutGil released;
    Buffer rounded;
    if (const cpu::Kernels::Rounding rounding = kernels.rounding(w.format, M.value)) {
      rounded = float_buffer((M.value + cpu::kRoundedPadding) * kernels.words_of_row(w.format, K.value));
      auto* words = static_cast<uint32_t*>(rounded.data());
      rounding(args.x, args.x_stride, M.value, K.value, words);
      args.rounded = words;
    }
    for_each_part(pool, w.num_panels(), [&](int64_t begin, int64_t end, int) { kernels.linear(args, begin, end); });
  }
  return y;
}

py::array layer_norm(const py::object& x, const py::object& gamma, const py::object& beta, float eps,
                     const py::object& out, const std::string& isa, cpu::ThreadPool* pool) {
  Dim R("R"), D("D");
  const Array xs(x, "x"), g(gamma, "gamma"), b(beta, "beta");
  xs.floats().shape({&R, &D});
  check_dense_rows(xs, "x");
  g.floats().shape({&D}).contiguous();
  b.floats().shape({&D}).contiguous();
  if (D.value < 1) throw Error("x: expected D >= 1, got 0");
  const cpu::Kernels& kernels = kernels_named(isa);
  py::array_t<float> y = output(out, {R.value, D.value});
  float* data = y.mutable_data();
  const int64_t d = D.value, stride = xs.view().strides[0];
  {
    const WithoutGil released;
    for_each_part(pool, R.value, [&](int64_t begin, int64_t end, int) {
      const float* rows = xs.data() + begin * stride;
      kernels.layer_norm({rows, stride, end - begin, d, g.data(), b.data(), eps, data + begin * d, d});
    });
  }
  return y;
}

// In all rows of a call. A range, or one list given for many rows, holds more than fits any memory.
constexpr size_t kMaxSlots = size_t{1} << 22;

// The text tokens that each row sees, in the form the kernel reads.
class TextSlots {
 public:
  TextSlots(const py::object& slots, int64_t rows, int64_t stored) {
    if (!PySequence_Check(slots.ptr())) throw py::type_error("slots: expected a list for each row");
    const std::string expected = "slots: expected one list for each of R=" + std::to_string(rows) + " rows, got ";
    size_t count = 0;
    for (const py::handle row : slots) {
      if (static_cast<int64_t>(numbers_.size()) == rows) throw Error(expected + "more");
      read_row(row, stored, count);
    }
    if (static_cast<int64_t>(numbers_.size()) < rows) throw Error(expected + std::to_string(numbers_.size()));
    for (const std::vector<int32_t>& row : numbers_) {
      pointers.push_back(row.data());
      lengths.push_back(static_cast<int32_t>(row.size()));
      longest = std::max(longest, static_cast<int64_t>(row.size()));
    }
  }

  std::vector<const int32_t*> pointers;
  std::vector<int32_t> lengths;
  int64_t longest = 0;

 private:
  void read_row(const py::handle row, int64_t stored, size_t& count) {
    const std::string name = "slots[" + std::to_string(numbers_.size()) + "]";
    if (!PySequence_Check(row.ptr())) throw py::type_error(name + ": expected a list of numbers");
    std::vector<int32_t> numbers;
    for (const py::handle number : row) {
      if (++count > kMaxSlots) throw Error("slots: expected at most " + std::to_string(kMaxSlots) + " numbers");
      if (!PyIndex_Check(number.ptr())) throw py::type_error(name + ": expected a list of numbers");
      const Py_ssize_t s = PyNumber_AsSsize_t(number.ptr(), nullptr);  // the nearest, if it is too large for one
      if (s == -1 && PyErr_Occurred()) throw py::error_already_set();
      if (s < 0 || s >= stored)
        throw Error(name + ": expected numbers from 0 to " + std::to_string(stored - 1) + ", got " + std::to_string(s));
      numbers.push_back(static_cast<int32_t>(s));
    }
    numbers_.push_back(std::move(numbers));
  }

  std::vector<std::vector<int32_t>> numbers_;
};

// Keys and values of a prefix (H, P, head_dim) as the attention kernel reads them.
class PackedPrefix {
 public:
  PackedPrefix(const py::object& k, const py::object& v, const std::string& dtype) {
    const Array ks(k, "k"), vs(v, "v");
    ks.floats().shape({&h_, &p_, &d_}).contiguous();
    vs.floats().shape({&h_, &p_, &d_}).contiguous();
    const cpu::WeightFormat format = weight_format_named(dtype);
    if (cpu::is_int8(format)) throw Error("dtype: expected 'float32' or 'bfloat16', got '" + dtype + "'");
    packed_ = std::make_unique<cpu::KeyValues>(h_.value, p_.value, d_.value, format);
    const cpu::Kernels& kernels = cpu::kernels_for(cpu::Isa::scalar);  // the layout is that of every instruction set
    const int64_t head = p_.value * d_.value;
    for (int64_t h = 0; h < h_.value; ++h)
      packed_->pack(kernels, h, ks.data() + h * head, vs.data() + h * head, d_.value);
  }

  Dim heads() const { return h_; }
  Dim tokens() const { return p_; }
  Dim head_dim() const { return d_; }
  const cpu::KeyValues& packed() const { return *packed_; }

 private:
  Dim h_{"H"}, p_{"P"}, d_{"head_dim"};
  std::unique_ptr<cpu::KeyValues> packed_;
};

// Heads [begin, end); `args` holds the pointers of head 0.
void attend_heads(const cpu::Kernels& kernels, const cpu::AttentionArgs& args, const PackedPrefix& prefix,
                  int64_t longest_text, int64_t begin, int64_t end) {
  Buffer scratch = float_buffer(cpu::attention_scratch_floats(args.head_dim, prefix.tokens().value, longest_text));
  for (int64_t h = begin; h < end; ++h) {
    const int64_t column = h * args.head_dim;
    cpu::AttentionArgs one = args;
    one.q += column;
    one.prefix = prefix.packed().head(h);
    one.k_text += column;
    one.v_text += column;
    one.out += column;
    one.scratch = scratch.floats();
    kernels.attention(one);
  }
}

// q (R, H, hd) over a prefix and the rows' text in k_text, v_text (S, H, hd).
py::array prefix_attention(const py::object& q, const PackedPrefix& prefix, const py::object& k_text,
                           const py::object& v_text, const py::object& slots, float scale, const py::object& out,
                           const std::string& isa, cpu::ThreadPool* pool) {
  Dim R("R"), H = prefix.heads(), S("S"), D = prefix.head_dim();
  const Array qs(q, "q"), kt(k_text, "k_text"), vt(v_text, "v_text");
  qs.floats().shape({&R, &H, &D}).contiguous();
  kt.floats().shape({&S, &H, &D}).contiguous();
  vt.floats().shape({&S, &H, &D}).contiguous();
  if (!(scale > 0) || !std::isfinite(scale))
    throw Error("scale: expected a positive number, got " + std::to_string(scale));
  const TextSlots text(slots, R.value, S.value);
  const cpu::Kernels& kernels = kernels_named(isa);
  py::array_t<float> y = output(out, {R.value, H.value, D.value});
  cpu::AttentionArgs args;
  args.q = qs.data();
  args.q_stride = args.out_stride = args.text_stride = H.value * D.value;
  args.rows = R.value;
  args.head_dim = D.value;
  args.scale = scale;
  args.k_text = kt.data();
  args.v_text = vt.data();
  args.slots = text.pointers.data();
  args.text_len = text.lengths.data();
  args.out = y.mutable_data();
  {
    const WithoutGil released;
    for_each_part(pool, H.value, [&](int64_t begin, int64_t end, int) {
      attend_heads(kernels, args, prefix, text.longest, begin, end);
    });
  }
  return y;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (cpu::Isa isa : cpu::available_isas()) names.push_back(cpu::isa_name(isa));
  return names;
}

}  // namespace

void bind_ops(py::module_& m) {
  using py::arg;
  m.def("available_isas", isa_names);
  m.def("choose_isa", [](const std::string& isa) { return cpu::isa_name(cpu::choose_isa(isa)); }, arg("isa"));
  m.def(
      "multiplies_bytes", [](const std::string& isa) { return kernels_named(isa).quantize_rows_to_bytes != nullptr; },
      arg("isa"));
  m.def("choose_num_threads", cpu::choose_num_threads, arg("num_threads"));
  m.attr("max_threads") = cpu::kMaxThreads;
  m.def(
      "choose_crews",
      [](int num_lanes, int num_threads) {
        const cpu::Crews crews = cpu::choose_crews(num_lanes, num_threads);
        return py::make_tuple(crews.lanes, crews.threads);
      },
      arg("num_lanes"), arg("num_threads"), "(lanes, threads of each)");
  py::class_<cpu::ThreadPool> pool(m, "ThreadPool");
  pool.def(py::init([](int n) { return std::make_unique<cpu::ThreadPool>(cpu::choose_num_threads(n)); }),
           arg("num_threads") = 0)
      .def_property_readonly("num_threads", method(&cpu::ThreadPool::num_threads));
  py::class_<PackedWeight> weight(m, "PackedWeight");
  weight
      .def(py::init<const py::object&, const py::object&, const std::string&>(), arg("weight"),
           arg("bias") = py::none(), arg("dtype") = "float32")
      .def_property_readonly("dtype", [](const PackedWeight& w) { return weight_format_name(w.view().format); })
      .def_property_readonly("nbytes", method(&PackedWeight::bytes))
      .def_property_readonly("shape", [](const PackedWeight& w) { return py::make_tuple(w.n().value, w.k().value); });
  py::class_<PackedPrefix> prefix(m, "PackedPrefix");
  prefix
      .def(py::init<const py::object&, const py::object&, const std::string&>(), arg("k"), arg("v"),
           arg("dtype") = "float32")
      .def_property_readonly("nbytes", [](const PackedPrefix& p) { return p.packed().bytes(); })
      .def_property_readonly("shape", [](const PackedPrefix& p) {
        return py::make_tuple(p.heads().value, p.tokens().value, p.head_dim().value);
      });
  require_init(pool);
  require_init(weight);
  require_init(prefix);
  m.def("linear", linear, arg("x"), arg("weight"), arg("residual"), arg("activation"), arg("out"), arg("isa"),
        arg("pool").none(true));
  m.def("layer_norm", layer_norm, arg("x"), arg("gamma"), arg("beta"), arg("eps"), arg("out"), arg("isa"),
        arg("pool").none(true));
  m.def("prefix_attention", prefix_attention, arg("q"), arg("prefix"), arg("k_text"), arg("v_text"), arg("slots"),
        arg("scale"), arg("out"), arg("isa"), arg("pool").none(true));
}

}  // namespace gitfast::bindings
