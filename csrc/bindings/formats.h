// Weight formats by the names of their dtypes.
#pragma once

#include <string>

#include "cpu/kernels.h"
#include "tensor.h"

namespace gitfast::bindings {

inline const char* weight_format_name(cpu::WeightFormat format) {
  static constexpr const char* kNames[] = {"float32", "bfloat16", "int8", "w8a8"};
  return kNames[static_cast<int>(format)];
}

inline cpu::WeightFormat weight_format_named(const std::string& dtype) {
  using cpu::WeightFormat;
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::w8a8})
    if (dtype == weight_format_name(format)) return format;
  throw Error("dtype: expected 'float32', 'bfloat16', 'int8' or 'w8a8', got '" + dtype + "'");
}

}  // namespace gitfast::bindings
