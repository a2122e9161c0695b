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
  char* data;
  int64_t lines_per_thread;
  std::vector<std::thread> threads;
  std::atomic<int> round{0}, running{0};
  std::atomic<bool> closed{false};

  void read(int thread) const {
    const auto* line = reinterpret_cast<const Line*>(data) + thread * lines_per_thread;
    Line sum[8] = {};
    for (int64_t i = 0; i + 8 <= lines_per_thread; i += 8)
      for (int j = 0; j < 8; ++j) sum[j] ^= line[i + j];
    for (Line& s : sum) asm volatile("" ::"m"(s));
  }

  void work(int thread) {
    for (int seen = 0;;) {
      while (round.load() == seen)
        if (closed.load()) return;
      ++seen;
      read(thread);
      running.fetch_sub(1);
    }
  }
};

}  // namespace

extern "C" {

Stream* stream_open(int64_t bytes, int threads) {
  auto* s = new Stream;
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  s->data = static_cast<char*>(std::aligned_alloc(kHugePage, static_cast<size_t>(size)));
  madvise(s->data, static_cast<size_t>(size), MADV_HUGEPAGE);
  std::memset(s->data, 1, static_cast<size_t>(size));
  s->lines_per_thread = bytes / 64 / threads;
  for (int t = 1; t < threads; ++t) s->threads.emplace_back([s, t] { s->work(t); });
  return s;
}

void stream_read(Stream* s) {
  s->running.store(static_cast<int>(s->threads.size()));
  s->round.fetch_add(1);
  s->read(0);
  while (s->running.load() > 0) {
  }
}

void stream_close(Stream* s) {
  s->closed.store(true);
  for (std::thread& t : s->threads) t.join();
  std::free(s->data);
  delete s;
}
}
