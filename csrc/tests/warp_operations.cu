// Every warp operation once, to test their emulation.
#include "cuda/platform.h"
#include "tests/warp_operations.h"

namespace gitfast::cuda {
namespace {

__global__ void warp_operations_kernel(const int32_t* values, int32_t* out) {
  const int thread = threadIdx.x, lane = thread % kWarpSize, threads = blockDim.x;
  const int32_t value = values[thread];
  out[0 * threads + thread] = __shfl_sync(kAllLanes, value, 5, 8);
  out[1 * threads + thread] = __shfl_up_sync(kAllLanes, value, 3, 16);
  out[2 * threads + thread] = __shfl_down_sync(kAllLanes, value, 6);
  out[3 * threads + thread] = __shfl_xor_sync(kAllLanes, value, 9);
  out[4 * threads + thread] = __ballot_sync(kAllLanes, value > 0);
  out[5 * threads + thread] = __any_sync(kAllLanes, value > 9);
  out[6 * threads + thread] = __all_sync(kAllLanes, value < 9);
  // Two groups of lanes take different ways, each with operations of its own.
  constexpr unsigned kLower = 0x0000ffffu;
  int32_t sum = value;
  if (lane < 16) {
    for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kLower, sum, lanes);
  } else {
    sum = __popc(__ballot_sync(~kLower, value > 0));
  }
  __syncwarp();
  out[7 * threads + thread] = sum;
}

}  // namespace

void warp_operations(const int32_t* values, int32_t* out, CUstream_st* stream) {
  launch_kernel({"warp_operations_kernel", dim3(1), dim3(2 * kWarpSize), 0, stream}, warp_operations_kernel, values,
                out);
}

}  // namespace gitfast::cuda
