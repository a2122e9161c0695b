// The thread pool, forks, and how many CPUs there are.
#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/threads.h"
#include "tensor.h"
#include "tests/native_test.h"

namespace gitfast::cpu {
namespace {

void test_parts_cover_the_range_once(int pieces) {
  for (int threads : {1, 2, 5})
    for (int64_t n : {0, 1, 2, 7, 100})
      for (int64_t grain : {1, 3, 32}) {
        ThreadPool pool(threads);
        std::vector<int> count(static_cast<size_t>(n), 0);
        std::vector<std::atomic<bool>> in_use(static_cast<size_t>(threads));
        std::atomic<int> parts{0};
        const auto once = [&](int64_t begin, int64_t end, int thread) {
          EXPECT(begin < end && begin % grain == 0 && (end % grain == 0 || end == n));
          EXPECT(!in_use[static_cast<size_t>(thread)].exchange(true));
          parts += 1;
          for (int64_t i = begin; i < end; ++i) count[static_cast<size_t>(i)] += 1;
          in_use[static_cast<size_t>(thread)] = false;
        };
        pool.parallel_for(n, grain, once, pieces);
        for (int c : count) EXPECT(c == 1);
        EXPECT(parts <= threads * pieces);
      }
}

void test_exceptions_come_back_after_every_part(int threads) {
  ThreadPool pool(threads);
  for (int failing = 0; failing < 4; ++failing) {
    std::atomic<int> ended{0};
    std::string message;
    const auto part = [&](int64_t begin, int64_t, int) {
      if (begin == failing) throw Error("part " + std::to_string(begin));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ended.fetch_add(1);
    };
    try {
      pool.parallel_for(4, 1, part, 4 / threads);
    } catch (const Error& e) {
      message = e.what();
    }
    EXPECT(message == "part " + std::to_string(failing));
    EXPECT(ended.load() == 3);
  }
  int64_t sum = 0;
  pool.parallel_for(1, 1, [&](int64_t, int64_t end, int) { sum += end; });
  EXPECT(sum == 1);
}

void test_a_region_inside_a_region_runs_in_place() {
  ThreadPool pool(3);
  std::vector<int64_t> sums(3, 0);
  pool.parallel_for(3, 1, [&](int64_t begin, int64_t, int thread) {
    pool.parallel_for(10, 1, [&](int64_t b, int64_t e, int inner) {
      EXPECT(inner == thread);
      sums[static_cast<size_t>(begin)] += e - b;
    });
  });
  for (int64_t s : sums) EXPECT(s == 10);
}

// Callers of one pool queue; pauses longer than the spin make threads park and wake.
void test_many_callers() {
  ThreadPool shared(3);
  int64_t unguarded = 0;  // written by one caller at a time: a race here is a pool that lets two in
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&, caller] {
      ThreadPool own(2);
      for (int i = 0; i < 60; ++i) {
        int64_t parts[3] = {};
        shared.parallel_for(3, 1, [&](int64_t begin, int64_t end, int) {
          parts[begin] = end;
          if (begin == 0) unguarded += 1;
        });
        EXPECT(parts[0] + parts[1] + parts[2] == 6);
        if (i % 20 == caller) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        own.parallel_for(2, 1, [&](int64_t begin, int64_t, int) { parts[begin] = 0; });
        EXPECT(parts[0] + parts[1] == 0);
      }
    });
  for (std::thread& t : callers) t.join();
  EXPECT(unguarded == 360);
}

void test_pools_come_and_go() {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    if (i % 3) pool.parallel_for(8, 1, [](int64_t, int64_t, int) {});
    if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void test_cgroup_quota() {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("gitfast-cgroup-" + std::to_string(std::random_device()()));
  EXPECT(fs::create_directory(folder));
  const std::string base = folder.string();
  const auto write = [&](const std::string& name, const std::string& text) { std::ofstream(base + name) << text; };
  const auto quota = [&] { return cgroup_cpus(base + "/membership", base); };
  constexpr int kNone = std::numeric_limits<int>::max();
  EXPECT(quota() == kNone);
  write("/cpu.max", "max 100000\n");
  EXPECT(quota() == kNone);
  write("/cpu.max", "250000 100000\n");
  EXPECT(quota() == 3);
  fs::create_directories(folder / "a/b");
  fs::create_directories(folder / "cpu/old");
  write("/membership", "0::/a/b\n");
  write("/a/cpu.max", "150000 100000\n");
  EXPECT(quota() == 2);
  write("/a/b/cpu.max", "1000 100000\n");
  EXPECT(quota() == 1);
  write("/a/b/cpu.max", "nonsense\n");
  EXPECT(quota() == 2);
  write("/membership", "7:memory:/a\n3:cpu,cpuacct:/old\n");
  EXPECT(quota() == 3);
  write("/cpu/old/cpu.cfs_quota_us", "100000\n");
  write("/cpu/old/cpu.cfs_period_us", "100000\n");
  EXPECT(quota() == 1);
  write("/cpu/old/cpu.cfs_quota_us", "-1\n");
  EXPECT(quota() == 3);
  fs::remove_all(folder);
}

}  // namespace

void test_thread_pool() {
  std::printf("thread pool\n");
  for (int pieces : {1, 4}) test_parts_cover_the_range_once(pieces);
  for (int threads : {1, 2, 4}) test_exceptions_come_back_after_every_part(threads);
  test_a_region_inside_a_region_runs_in_place();
  test_many_callers();
  test_pools_come_and_go();
  test_cgroup_quota();
}

void test_forks() {
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)  // which refuses new threads in a forked child
  std::printf("forks\n");
  ThreadPool pool(3);
  const auto work = [&] {
    std::atomic<int64_t> sum{0};
    pool.parallel_for(30, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    return sum.load() == 30;
  };
  EXPECT(work());
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) EXPECT(work());
  });
  for (int i = 0; i < 10; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      _exit(work() && work() ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT(status == 0);
  }
  stop = true;
  busy.join();
#endif
}

}  // namespace gitfast::cpu
