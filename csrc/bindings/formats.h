// Weight formats by the names of their dtypes.
#pragma once

#include <string>

#include "cpu/kernels.h"
#include "tensor.h"

namespace gitfast::bindings {

inline const char* weight_format_name(cpu::WeightFormat format) {
  static constexpr const char* kNames[] = {"float32", "bfloat16", "int8"};
  return kNames[static_cast<int>(format)];
}

inline cpu::WeightFormat weight_format_named(const std::string& dtype) {
  for (cpu::WeightFormat format : {cpu::WeightFormat::f32, cpu::WeightFormat::bf16, cpu::WeightFormat::int8})
    if (dtype == weight_format_name(format)) return format;
  throw Error("dtype: expected 'float32', 'bfloat16' or 'int8', got '" + dtype + "'");
}

}  // namespace gitfast::bindings
