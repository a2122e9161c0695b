// A test of the emulation: one block stores to the shared memory of another that may have ended.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t, without the CUDA headers

namespace gitfast::cuda {

// `flag` is one zero. With `wait` the other block stays until the store is done, else it ends before.
void late_store(uint32_t* flag, bool wait, CUstream_st* stream);

}  // namespace gitfast::cuda
