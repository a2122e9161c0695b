// Memory that fails where a test wants it to. By itself: where GCC sees both operators it misses their twins.
#include <cstdlib>
#include <new>

#include "tests/native_test.h"

namespace gitfast::cpu {

std::atomic<int64_t> failing_allocation{0};

}  // namespace gitfast::cpu

using gitfast::cpu::failing_allocation;

void* operator new(size_t bytes) {
  if (failing_allocation.load() > 0 && failing_allocation.fetch_sub(1) == 1) throw std::bad_alloc();
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
