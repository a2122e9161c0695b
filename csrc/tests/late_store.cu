// A kernel whose block may store to one that has ended: a fault the emulation must report.
#include "cuda/cluster.h"
#include "cuda/platform.h"
#include "tests/late_store.h"

namespace gitfast::cuda {
namespace {

// A cluster of two blocks of one thread.
__global__ void late_store_kernel(uint32_t* flag, bool wait) {
  GITFAST_SHARED(uint32_t, shared);
  shared[0] = blockIdx.x;
  cluster_sync();
  uint32_t* other = in_block(1 - blockIdx.x, shared);
  if (blockIdx.x == 1) {
    add_release(flag, 1);
  } else {
    unsigned polls = 0;
    while (load_acquire(flag) == 0 && keep_polling(polls)) {
    }
    *other = 7;
  }
  if (wait) cluster_sync();
}

}  // namespace

void late_store(uint32_t* flag, bool wait, CUstream_st* stream) {
  Launch launch{"late_store_kernel", dim3(2), dim3(1), sizeof(uint32_t), stream};
  launch.cluster = 2;
  launch_kernel(launch, late_store_kernel, flag, wait);
}

}  // namespace gitfast::cuda
