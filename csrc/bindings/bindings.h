// Each part of the module adds itself. Only this folder includes pybind11, and it holds no arithmetic.
#pragma once

#include <pybind11/pybind11.h>

namespace gitfast::bindings {

void bind_ops(pybind11::module_& m);
void bind_search(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_image(pybind11::module_& m);
void bind_cuda_limits(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);  // in builds with CUDA only

}  // namespace gitfast::bindings
