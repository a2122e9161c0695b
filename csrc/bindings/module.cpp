// The native module gitfast._C.
#include "bindings.h"
#include "instances.h"
#include "tensor.h"

namespace {

// pybind11 before Python 3.12 takes the GIL by way of the main interpreter: in another one the import would wait for
// ever. And the engine's locks and callbacks know one interpreter alone.
bool in_main_interpreter() { return PyInterpreterState_Get() == PyInterpreterState_Main(); }

constexpr const char* kOneInterpreter = "gitfast runs in the main interpreter of a process, not in sub-interpreters";

}  // namespace

PYBIND11_MODULE(native, m) {
  if (!in_main_interpreter()) throw pybind11::import_error(kOneInterpreter);  // Python 3.13 asks PyInit in the main one
  m.doc() = "The native half of gitfast: CPU kernels and engine, search, resampling of pictures, CUDA kernels.";
  gitfast::bindings::refuse_bare_instances();
  gitfast::bindings::bind_ops(m);
  gitfast::bindings::bind_search(m);
  gitfast::bindings::bind_engine(m);
  gitfast::bindings::bind_image(m);
  gitfast::bindings::bind_cuda_limits(m);
#if GITFAST_WITH_CUDA
  gitfast::bindings::bind_cuda(m);
#endif
}

extern "C" PYBIND11_EXPORT PyObject* PyInit__C();

extern "C" PYBIND11_EXPORT PyObject* PyInit__C() {
  if (in_main_interpreter()) return PyInit_native();
  PyErr_SetString(PyExc_ImportError, kOneInterpreter);
  return nullptr;
}
