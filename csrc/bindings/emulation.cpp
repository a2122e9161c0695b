// _emulation, a module for the tests: the CUDA kernels on the host, with arrays of host memory.
#include "emulation/emulation.h"

#include "cuda_kernels.h"

PYBIND11_MODULE(_emulation, m) {
  using gitfast::emulation::Order;
  m.doc() = "The CUDA kernels of gitfast, run thread by thread on the host.";
  pybind11::register_exception<gitfast::emulation::Fault>(m, "Fault");
  gitfast::bindings::bind_cuda_kernels(m, gitfast::Device::cpu);
  m.def(
      "set_order",
      [](const std::string& order, unsigned seed) {
        constexpr const char* kNames[] = {"forward", "reverse", "shuffled", "run_ahead"};
        for (int i = 0; i < 4; ++i)
          if (order == kNames[i]) {
            gitfast::emulation::settings = {static_cast<Order>(i), seed};
            return;
          }
        throw gitfast::Error("order: expected forward, reverse, shuffled or run_ahead, got " + order);
      },
      pybind11::arg("order"), pybind11::arg("seed") = 0);
}
