// The CUDA devices of this machine.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace gitfast::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t memory = 0;  // bytes
};

struct Devices {
  std::vector<DeviceInfo> devices;
  std::string problem;                          // why there is none; empty where there are some
  int runtime_version = 0, driver_version = 0;  // 13000 is 13.0; no driver: 0
};

// Never throws: a machine without a driver has no devices and a reason.
Devices find_devices();

}  // namespace gitfast::cuda
