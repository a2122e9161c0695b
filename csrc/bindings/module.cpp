// The native module gitfast._C.
#include "bindings.h"
#include "tensor.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native half of gitfast: CPU kernels and engine, search, resampling of pictures, CUDA kernels.";
  gitfast::bindings::bind_ops(m);
  gitfast::bindings::bind_search(m);
  gitfast::bindings::bind_engine(m);
  gitfast::bindings::bind_image(m);
  gitfast::bindings::bind_cuda_limits(m);
#if GITFAST_WITH_CUDA
  gitfast::bindings::bind_cuda(m);
#endif
}
