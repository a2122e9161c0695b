// Questions to the CUDA runtime about the devices of this machine.
#include <cuda_runtime.h>

#include "cuda/device.h"

namespace gitfast::cuda {

Devices find_devices() {
  Devices found;
  cudaRuntimeGetVersion(&found.runtime_version);
  cudaDriverGetVersion(&found.driver_version);
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  for (int i = 0; i < count && status == cudaSuccess; ++i) {
    cudaDeviceProp properties;
    status = cudaGetDeviceProperties(&properties, i);
    if (status == cudaSuccess)
      found.devices.push_back({properties.name, properties.major, properties.minor, properties.multiProcessorCount,
                               properties.totalGlobalMem});
  }
  if (status != cudaSuccess) {
    found.devices.clear();
    found.problem = cudaGetErrorString(status);
    cudaGetLastError();  // the runtime would report it again at the next launch
  } else if (count == 0) {
    found.problem = "no CUDA device";
  }
  return found;
}

}  // namespace gitfast::cuda
