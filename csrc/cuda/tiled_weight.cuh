// Packed weights as kernels read them: chunks of a lane, and what tensor cores take from them.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "cuda/linear.h"
#include "cuda/platform.h"

namespace gitfast::cuda {

constexpr int kProductWarps = 8;  // of a block that multiplies; they share the depth, by the weight's shape alone
constexpr int kTileColumns = 8;

struct Float8 {  // e4m3
  uint8_t bits;
};

// A load of one lane: neighbours of one row of the weight. Bytes taken apart would fill a register each.
using WeightChunk = Vec<uint32_t, 4>;

// Elements 2 i and 2 i + 1 of a chunk of W, as tensor cores take them. Exact: T holds all values of 8 bits.
template <class T, class W>
__device__ __forceinline__ uint32_t weight_pair(const WeightChunk& chunk, int i) {
  if constexpr (std::is_same_v<T, W>) return chunk.at[i];
  const auto two = static_cast<uint16_t>(chunk.at[i / 2] >> i % 2 * 16);
  if constexpr (std::is_same_v<W, int8_t>) return pair_of<T>(static_cast<int8_t>(two), static_cast<int8_t>(two >> 8));
  const __half2 halves(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3));
  return pair_of<T>(__low2float(halves), __high2float(halves));
}

// Throws Error for a weight that no kernel takes with inputs of `dtype`.
inline void check_weight(const TiledWeight& weight, DType dtype) {
  if (dtype != DType::f16 && dtype != DType::bf16)
    throw Error(std::string("x: expected float16 or bfloat16, got ") + dtype_name(dtype));
  if (weight.dtype != dtype && weight.dtype != DType::i8 && weight.dtype != DType::u8)
    throw Error(std::string("weight: expected ") + dtype_name(dtype) + ", int8 or uint8 (float8_e4m3), got " +
                dtype_name(weight.dtype));
  const auto step = static_cast<int64_t>(64 / dtype_size(weight.dtype));
  if (weight.depth < 1 || weight.depth % step)
    throw Error("weight: expected a depth that is a multiple of " + std::to_string(step) + ", got " +
                std::to_string(weight.depth));
  if (weight.columns < 1) throw Error("weight: expected at least one column");
  if (!aligned(weight.data, 0, 16)) throw Error("weight: expected data at a multiple of 16 bytes");
  if (dtype_size(weight.dtype) == 1 && !weight.scales) throw Error("scales: a weight of 8 bits needs them");
}

__host__ __device__ __forceinline__ int64_t tiles_of(int64_t columns) {
  return (columns + kTileColumns - 1) / kTileColumns;
}

// Scales the sum of a column's products and adds the bias; `bias`, of T, may be null.
template <class T>
__device__ __forceinline__ float scale_and_bias(float sum, const TiledWeight& weight, const void* bias,
                                                int64_t column) {
  if (weight.scales) sum *= weight.scales[column];
  return bias ? sum + to_float(static_cast<const T*>(bias)[column]) : sum;
}

template <class T, class W>
struct Types {
  using Input = T;
  using Weight = W;
};

// run(Types<T, W>()) with the types that a checked weight and `dtype` say.
template <class Run>
void with_types(DType dtype, DType weight, Run run) {
  const auto with_input = [&](auto input) {
    using T = decltype(input);
    if (weight == DType::i8) return run(Types<T, int8_t>());
    if (weight == DType::u8) return run(Types<T, Float8>());
    run(Types<T, T>());
  };
  dtype == DType::f16 ? with_input(__half()) : with_input(__nv_bfloat16());
}

}  // namespace gitfast::cuda
