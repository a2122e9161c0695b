// _emulation, a module for the tests: the CUDA kernels on the host, on arrays in host memory.
#include "cuda_kernels.h"
#include "emulation/settings.h"
#include "tests/late_store.h"
#include "tests/tile_product.h"
#include "tests/warp_operations.h"

namespace gitfast::bindings {

static void tile_product(const py::object& a, const py::object& b, const py::object& out) {
  const Array a_array(a, "a"), b_array(b, "b"), out_array(out, "out");
  Dim M("M"), N("N"), K("K");
  a_array.check().shape({&M, &K}).contiguous();
  b_array.check().dtype(a_array.view().dtype).shape({&K, &N}).contiguous();
  out_array.floats().shape({&M, &N}).contiguous();
  cuda::tile_product({a_array.view().dtype, M.value, N.value, K.value, a_array.view().data, b_array.view().data,
                      out_array.view().ptr<float>()},
                     nullptr);
}

static void warp_operations(const py::object& values, const py::object& out) {
  const Array values_array(values, "values"), out_array(out, "out");
  Dim operations(cuda::kWarpOperations), threads(64);
  values_array.check().dtype(DType::i32).shape({&threads}).contiguous();
  out_array.check().dtype(DType::i32).shape({&operations, &threads}).contiguous();
  cuda::warp_operations(values_array.view().ptr<int32_t>(), out_array.view().ptr<int32_t>(), nullptr);
}

static void late_store(bool wait) {
  uint32_t flag = 0;
  cuda::late_store(&flag, wait, nullptr);
}

}  // namespace gitfast::bindings

PYBIND11_MODULE(_emulation, m) {
  using gitfast::emulation::Order;
  m.doc() = "The CUDA kernels of gitfast, run thread by thread on the host.";
  pybind11::register_exception<gitfast::emulation::Fault>(m, "Fault");
  gitfast::bindings::bind_cuda_kernels(m, gitfast::Device::cpu);
  m.def("tile_product", &gitfast::bindings::tile_product, pybind11::arg("a"), pybind11::arg("b"), pybind11::arg("out"));
  m.def("late_store", &gitfast::bindings::late_store, pybind11::arg("wait"));
  m.def("warp_operations", &gitfast::bindings::warp_operations, pybind11::arg("values"), pybind11::arg("out"));
  m.def(
      "set_order",
      [](const std::string& order, unsigned seed, bool late_copies) {
        constexpr const char* kNames[] = {"forward", "reverse", "shuffled", "run_ahead"};
        for (int i = 0; i < 4; ++i)
          if (order == kNames[i]) {
            gitfast::emulation::settings = {static_cast<Order>(i), seed, late_copies};
            return;
          }
        throw gitfast::Error("order: expected forward, reverse, shuffled or run_ahead, got " + order);
      },
      pybind11::arg("order"), pybind11::arg("seed") = 0, pybind11::arg("late_copies") = true);
}
