// Random numbers by counting: what is drawn depends on a key and a step alone, on the host as on a device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GITFAST_ANYWHERE __host__ __device__
#else
#define GITFAST_ANYWHERE
#endif

namespace gitfast {

// splitmix64 (Steele, Lea and Flood 2014): a bijection whose outputs pass statistical tests on counters.
GITFAST_ANYWHERE inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// In [0, 1), a multiple of 2^-53.
GITFAST_ANYWHERE inline double uniform(uint64_t key, uint64_t step) {
  return static_cast<double>(mix(key ^ step) >> 11) * 0x1p-53;
}

}  // namespace gitfast
