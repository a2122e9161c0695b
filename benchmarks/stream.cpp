// Reads memory as fast as threads can, and does nothing with it: the floor of a step that must read every weight once.
// benchmarks/stream.py compiles it.
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

typedef int64_t Line __attribute__((vector_size(64)));

struct Stream {
  Line* lines;
  int64_t lines_per_thread;
  int num_threads;
};

// Two streams side by side are faster than one, and more are not.
void read_part(const Stream& s, int thread) {
  const int64_t half = s.lines_per_thread / 2;
  const Line* line = s.lines + thread * s.lines_per_thread;
  Line sum[4] = {};
  for (int64_t i = 0; i + 2 <= half; i += 2)
    for (int j = 0; j < 4; ++j) sum[j] ^= line[j / 2 * half + i + j % 2];
  for (Line& x : sum) asm volatile("" ::"m"(x));
}

}  // namespace

extern "C" {

Stream* stream_open(int64_t bytes, int num_threads) {
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const auto size = static_cast<size_t>((bytes + kHugePage - 1) / kHugePage * kHugePage);
  void* data = std::aligned_alloc(kHugePage, size);
  madvise(data, size, MADV_HUGEPAGE);
  std::memset(data, 1, size);
  return new Stream{static_cast<Line*>(data), bytes / 64 / num_threads, num_threads};
}

// All of it, `times` in a row; the threads meet after each.
void stream_read(Stream* s, int times) {
  std::atomic<int> arrived{0};
  const auto work = [&](int thread) {
    for (int i = 1; i <= times; ++i) {
      read_part(*s, thread);
      arrived.fetch_add(1);
      while (arrived.load() < i * s->num_threads) {
      }
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < s->num_threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& t : others) t.join();
}

void stream_close(Stream* s) {
  std::free(s->lines);
  delete s;
}
}
