// The host side of kernels over rows of floats: their checks, and the choice of a type.
#pragma once

#include "cuda/platform.h"
#include "tensor.h"

namespace gitfast::cuda {

// run(T()) on the device of `args`, T being float, __half or __nv_bfloat16 by its dtype; nothing for no rows. Throws
// Error for a width, a number of rows or a dtype that no such kernel takes.
template <class Args, class Run>
void for_rows(const Args& args, int64_t max_width, const Run& run) {
  if (args.width < 1 || args.width > max_width)
    throw Error("x: expected rows of 1 to " + std::to_string(max_width) + " elements, got " +
                std::to_string(args.width));
  if (args.rows > INT32_MAX) throw Error("x: too many rows: " + std::to_string(args.rows));
  if (args.rows == 0) return;
  const DeviceScope device(args.device);
  if (args.dtype == DType::f32) return run(float());
  if (args.dtype == DType::f16) return run(__half());
  if (args.dtype == DType::bf16) return run(__nv_bfloat16());
  throw Error(std::string("x: expected float32, float16 or bfloat16, got ") + dtype_name(args.dtype));
}

}  // namespace gitfast::cuda
