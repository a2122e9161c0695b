// The tests of csrc/tests/native_test.cpp, by subject, and what they share.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace gitfast::cpu {

using Floats = std::vector<float>;

// Whole numbers from -4 to 4: sums of their products are exact in any order.
inline Floats whole_numbers(int64_t n, uint32_t seed) {
  Floats values(static_cast<size_t>(n));
  for (float& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int>(seed >> 24) % 9 - 4);
  }
  return values;
}

// Counted from where it is set, the call of operator new that throws; 0: none does.
extern std::atomic<int64_t> failing_allocation;

void test_all_kernels();  // native_test_kernels.cpp
void test_thread_pool();  // native_test_threads.cpp
void test_forks();        // native_test_threads.cpp
void test_policy();       // native_test_policy.cpp
void test_engine();       // native_test_engine.cpp

}  // namespace gitfast::cpu
