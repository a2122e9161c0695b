// The CUDA kernels as Python functions of keyword arguments: of device arrays in _C.cuda, of host arrays in _emulation.
#pragma once

#include <optional>

#include "cuda/linear.h"
#include "cuda/search.h"
#include "cuda_arguments.h"
#include "gil.h"

namespace gitfast::bindings {

// Binds all of them for arrays on `device`.
void bind_cuda_kernels(py::module_& m, Device device);
void bind_cuda_search(py::module_& m, Device device);
void bind_cuda_persistent(py::module_& m, Device device);

// m.name(**arguments) calls run(arguments); the array `first` decides the dtype and the device of all.
inline void bind_kernel(py::module_& m, Device device, const char* name, const char* first,
                        void (*run)(Arguments& arguments)) {
  m.def(name, [device, first, run](const py::kwargs& given) {
    Arguments arguments(device, given, first);
    run(arguments);
  });
}

// Enqueues a kernel whose arguments are all read, without the interpreter's lock.
template <class Struct>
void enqueue(void (*kernel)(const Struct&, CUstream_st*), const Struct& args, Arguments& arguments) {
  CUstream_st* stream = arguments.stream();
  arguments.finish();
  const WithoutGil released;
  kernel(args, stream);
}

// A tiled weight `name` (tiles, steps, 8, D) of 64 bytes along D, with `name`_scales of weights of 8 bits.
cuda::TiledWeight tiled_weight(Arguments& arguments, const std::string& name, Dim& columns);

// A search's state: a dict of arrays and sizes. The arguments keep the arrays.
cuda::SearchState search_state(Arguments& state);

}  // namespace gitfast::bindings
