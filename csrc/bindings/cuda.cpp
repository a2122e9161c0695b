// _C.cuda, in builds with CUDA: the devices of this machine and the kernels.
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda/device.h"
#include "cuda_kernels.h"

namespace gitfast::bindings {

static py::dict devices() {
  const cuda::Devices found = cuda::find_devices();
  py::list devices;
  for (const cuda::DeviceInfo& device : found.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = py::make_tuple(device.major, device.minor);
    entry["multiprocessors"] = device.multiprocessors;
    entry["memory"] = device.memory;
    devices.append(entry);
  }
  py::dict result;
  result["devices"] = devices;
  result["problem"] = found.problem;
  result["runtime_version"] = found.runtime_version;
  result["driver_version"] = found.driver_version;
  return result;
}

void bind_cuda(py::module_& m) {
  py::module_ cuda = m.def_submodule("cuda", "CUDA devices and kernels.");
  cuda.def("devices", &devices);
  bind_cuda_kernels(cuda, Device::cuda);
}

}  // namespace gitfast::bindings
