// The CPU kernels as functions on numpy arrays, for gitfast.ops and the kernel tests.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace gitfast::bindings {
namespace {

using cpu::Activation;
using cpu::Buffer;

Buffer float_buffer(int64_t n) { return Buffer(static_cast<size_t>(n) * sizeof(float)); }

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "quick_gelu") return Activation::quick_gelu;
  if (name == "gelu") return Activation::gelu_erf;
  throw Error("activation: expected 'none', 'quick_gelu' or 'gelu', got '" + name + "'");
}

// A weight packed once, so that a benchmark times the product alone.
class PackedWeight {
 public:
  PackedWeight(const py::array& weight, const std::optional<py::array>& bias) {
    Dim N("N"), K("K");
    const TensorView w = view_of(weight, "weight");
    Check(w, "weight").shape({&N, &K}).contiguous();
    n = N.value;
    k = K.value;
    const int64_t columns = (n + cpu::kPanel - 1) / cpu::kPanel * cpu::kPanel;
    panels_ = float_buffer(columns * k);
    std::fill(panels_.floats(), panels_.floats() + columns * k, 0.f);
    cpu::pack_linear_rows(w.data, w.dtype == DType::f16, n, k, 0, panels_.floats());
    if (!bias) return;
    const TensorView b = floats(*bias, "bias");
    Check(b, "bias").shape({&N});
    bias_ = float_buffer(n);
    std::copy(b.ptr<float>(), b.ptr<float>() + n, bias_.floats());
  }

  cpu::PackedLinear view() const { return {n, k, panels_.floats(), bias_.bytes() ? bias_.floats() : nullptr}; }

  int64_t n = 0, k = 0;

 private:
  Buffer panels_, bias_;
};

py::array linear(const py::array& x, const PackedWeight& weight, const std::optional<py::array>& residual,
                 const std::string& activation, const std::string& isa, cpu::ThreadPool& pool) {
  Dim M("M"), N(weight.n), K(weight.k);
  const TensorView xs = floats(x, "x");
  Check(xs, "x").shape({&M, &K});
  const float* residual_data = nullptr;
  if (residual) {
    const TensorView r = floats(*residual, "residual");
    Check(r, "residual").shape({&M, &N});
    residual_data = r.ptr<float>();
  }
  const cpu::Kernels& kernels = cpu::kernels_for(cpu::choose_isa(isa));
  const Activation act = activation_of(activation);
  py::array_t<float> y = empty({M.value, N.value});
  float* out = y.mutable_data();
  {
    py::gil_scoped_release release;
    const cpu::PackedLinear w = weight.view();
    const cpu::LinearArgs args{xs.ptr<float>(), K.value, M.value, &w, act, residual_data, out, N.value};
    pool.parallel_for(w.num_panels(), 1, [&](int64_t begin, int64_t end, int) { kernels.linear(args, begin, end); });
  }
  return y;
}

py::array layer_norm(const py::array& x, const py::array& gamma, const py::array& beta, float eps,
                     const std::string& isa) {
  Dim R("R"), D("D");
  const TensorView xs = floats(x, "x"), g = floats(gamma, "gamma"), b = floats(beta, "beta");
  Check(xs, "x").shape({&R, &D});
  Check(g, "gamma").shape({&D});
  Check(b, "beta").shape({&D});
  const cpu::Kernels& kernels = cpu::kernels_for(cpu::choose_isa(isa));
  py::array_t<float> y = empty({R.value, D.value});
  float* out = y.mutable_data();
  {
    py::gil_scoped_release release;
    kernels.layer_norm(xs.ptr<float>(), D.value, g.ptr<float>(), b.ptr<float>(), eps, R.value, D.value, out, D.value);
  }
  return y;
}

// q (R, H, hd) over prefix k, v (H, P, hd) and per-row text: k_text, v_text (S, H, hd) seen through slots.
py::array prefix_attention(const py::array& q, const py::array& k, const py::array& v, const py::array& k_text,
                           const py::array& v_text, const std::vector<std::vector<int32_t>>& slots,
                           const std::string& isa) {
  Dim R("R"), H("H"), P("P"), S("S"), D("head_dim");
  const TensorView qs = floats(q, "q"), ks = floats(k, "k"), vs = floats(v, "v");
  const TensorView kt = floats(k_text, "k_text"), vt = floats(v_text, "v_text");
  Check(qs, "q").shape({&R, &H, &D});
  Check(ks, "k").shape({&H, &P, &D});
  Check(vs, "v").shape({&H, &P, &D});
  Check(kt, "k_text").shape({&S, &H, &D});
  Check(vt, "v_text").shape({&S, &H, &D});
  if (static_cast<int64_t>(slots.size()) != R.value)
    throw Error("slots: expected one list for each of " + std::to_string(R.value) + " rows, got " +
                std::to_string(slots.size()));
  std::vector<const int32_t*> pointers;
  std::vector<int32_t> lengths;
  int64_t longest = 0;
  for (size_t r = 0; r < slots.size(); ++r) {
    const std::string where = "slots[" + std::to_string(r) + "]: ";
    for (int32_t s : slots[r])
      if (s < 0 || s >= S.value)
        throw Error(where + "slot " + std::to_string(s) + " is not one of the " + std::to_string(S.value) + " stored");
    if (P.value == 0 && slots[r].empty()) throw Error(where + "the row sees no key");
    pointers.push_back(slots[r].data());
    lengths.push_back(static_cast<int32_t>(slots[r].size()));
    longest = std::max(longest, static_cast<int64_t>(slots[r].size()));
  }
  const cpu::Kernels& kernels = cpu::kernels_for(cpu::choose_isa(isa));
  py::array_t<float> y = empty({R.value, H.value, D.value});
  float* out = y.mutable_data();
  {
    py::gil_scoped_release release;
    const int64_t padded = (P.value + cpu::kKeyBlock - 1) / cpu::kKeyBlock * cpu::kKeyBlock, width = H.value * D.value;
    Buffer keys = float_buffer(padded * D.value);
    Buffer scratch = float_buffer(cpu::attention_scratch_floats(P.value, longest));
    for (int64_t h = 0; h < H.value; ++h) {
      kernels.pack_keys(ks.ptr<float>() + h * P.value * D.value, D.value, P.value, D.value, keys.floats());
      cpu::AttentionArgs args;
      args.q = qs.ptr<float>() + h * D.value;
      args.q_stride = width;
      args.rows = R.value;
      args.head_dim = D.value;
      args.scale = 1.f / std::sqrt(static_cast<float>(D.value));
      args.k_prefix = keys.floats();
      args.v_prefix = vs.ptr<float>() + h * P.value * D.value;
      args.prefix_len = P.value;
      args.k_text = kt.ptr<float>() + h * D.value;
      args.v_text = vt.ptr<float>() + h * D.value;
      args.text_stride = width;
      args.slots = pointers.data();
      args.text_len = lengths.data();
      args.out = out + h * D.value;
      args.out_stride = width;
      args.scratch = scratch.floats();
      kernels.attention(args);
    }
  }
  return y;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (cpu::Isa isa : cpu::available_isas()) names.push_back(cpu::isa_name(isa));
  return names;
}

// Adds one to every element in parallel, to test the pool from Python; throws at `fail_at` if that is not negative.
py::array pool_probe(cpu::ThreadPool& pool, const py::array_t<float>& x, int64_t fail_at) {
  py::array_t<float> y = empty({x.size()});
  const float* in = x.data();
  float* out = y.mutable_data();
  const int64_t n = x.size();
  {
    py::gil_scoped_release release;
    pool.parallel_for(n, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        if (i == fail_at) throw Error("element " + std::to_string(i) + " fails");
        out[i] = in[i] + 1;
      }
    });
  }
  return y;
}

}  // namespace

void bind_ops(py::module_& m) {
  using py::arg;
  m.def("available_isas", isa_names);
  m.def("choose_isa", [](const std::string& isa) { return cpu::isa_name(cpu::choose_isa(isa)); }, arg("isa") = "");
  m.def("choose_num_threads", cpu::choose_num_threads, arg("num_threads") = 0);
  py::class_<cpu::ThreadPool>(m, "ThreadPool")
      .def(py::init<int>(), arg("num_threads"))
      .def_property_readonly("num_threads", &cpu::ThreadPool::num_threads)
      .def("probe", pool_probe, arg("x"), arg("fail_at") = -1);
  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init<const py::array&, const std::optional<py::array>&>(), arg("weight"), arg("bias") = py::none());
  m.def("linear", linear, arg("x"), arg("weight"), arg("residual"), arg("activation"), arg("isa"), arg("pool"));
  m.def("layer_norm", layer_norm, arg("x"), arg("gamma"), arg("beta"), arg("eps"), arg("isa"));
  m.def("prefix_attention", prefix_attention, arg("q"), arg("k"), arg("v"), arg("k_text"), arg("v_text"), arg("slots"),
        arg("isa"));
}

}  // namespace gitfast::bindings
