// Every warp operation that the emulation offers, each once.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace gitfast::cuda {

constexpr int kWarpOperations = 8;

// values (64,): of two warps; out (kWarpOperations, 64).
void warp_operations(const int32_t* values, int32_t* out, CUstream_st* stream);

}  // namespace gitfast::cuda
