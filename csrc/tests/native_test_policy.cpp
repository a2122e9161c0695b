// The policy: the running batch's next action, and the division of rows and threads among lanes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "cpu/engine.h"
#include "cpu/policy.h"
#include "cpu/threads.h"
#include "tensor.h"
#include "tests/native_test.h"

namespace gitfast::cpu {
namespace {

// Encoding with rows that decode, in simulated time: what the policy makes of slices and steps that take so long.
struct Simulation {
  double slice, step;  // seconds
  double longest_gap = 0;
  int64_t slices = 0, steps = 0;

  void run(double duration) {
    Work work{4, true, 0, 0, step, slice};
    for (double now = 0, last = 0; now < duration;) {
      work.since_step = now - last;
      const Action action = next_action(work);
      EXPECT(action != Action::idle);
      now += action == Action::slice ? slice : step;
      if (action == Action::slice) {
        ++slices;
        ++work.slices;
      } else {
        longest_gap = std::max(longest_gap, now - last);
        last = now;
        ++steps;
        work.slices = 0;
      }
    }
  }
};

void test_policy_bounds_the_gap_between_tokens() {
  for (double slice : {0.0005, 0.002, 0.008, 0.014})
    for (double step : {0.001, 0.005, 0.015}) {
      Simulation simulation{slice, step};
      simulation.run(10);
      EXPECT(simulation.longest_gap <= kTokenGapSeconds + 1e-9);
      EXPECT(static_cast<double>(simulation.slices) * slice >= 10 * 0.4 * (1 - step / kTokenGapSeconds));
    }
  Simulation slow{0.035, 0.012};  // three slices, and a step
  slow.run(10);
  EXPECT(slow.longest_gap > kTokenGapSeconds && slow.longest_gap <= kSlowTokenGapSeconds);
  EXPECT(std::abs(slow.slices - 3 * slow.steps) <= 3);
  slow = {0.1, 0.03};  // no gap can be kept: they take turns
  slow.run(12);
  EXPECT(slow.slices - slow.steps <= 1 && slow.steps - slow.slices <= 1);
  EXPECT(next_action({}) == Action::idle);
  EXPECT(next_action({1, false}) == Action::step);
  EXPECT(next_action({0, true}) == Action::slice);

  Work none, rows{3, true, 0, 0, 0.010, 0};
  EXPECT(images_together(8, 8, 10, 2, none, 0.05) == 8);     // one call's own
  EXPECT(images_together(40, 40, 10, 2, none, 0.05) == 10);  // memory
  EXPECT(images_together(8, 1, 10, 2, none, 0.05) == 2);     // of several calls: until the threads are busy
  EXPECT(images_together(1, 1, 10, 2, none, 0.05) == 1);
  EXPECT(images_together(8, 8, 10, 2, rows, 0.0048) == 4);  // 20 ms are left of the gap
  EXPECT(images_together(8, 8, 10, 2, rows, 0.050) == 1);
}

void test_spreading_over_lanes() {
  using Counts = std::vector<int64_t>;
  EXPECT((spread({5}, {0, 0}) == Counts{1, 0}));
  EXPECT((spread({5}, {3, 2, 4}) == Counts{0, 1, 0}));
  EXPECT((spread(Counts(8, 197), {0, 0}) == Counts{4, 4}));
  EXPECT((spread(Counts(8, 10), {0, 40}) == Counts{6, 2}));  // both are done at the same time
  EXPECT((spread(Counts(3, 10), {100, 0}) == Counts{0, 3}));
  EXPECT((spread({}, {1, 2}) == Counts{0, 0}));
}

void test_crews() {
  const auto is = [](Crews crews, int lanes, int threads) { return crews.lanes == lanes && crews.threads == threads; };
  setenv("GITFAST_NUM_THREADS", "6", 1);
  EXPECT(is(choose_crews(0, 0), 1, 6));
  EXPECT(is(choose_crews(2, 0), 2, 3));
  EXPECT(is(choose_crews(4, 0), 4, 1));
  EXPECT(is(choose_crews(9, 0), 9, 1));
  EXPECT(is(choose_crews(0, 4), 1, 4));
  EXPECT(is(choose_crews(3, 4), 3, 4));
  setenv("GITFAST_NUM_THREADS", "64", 1);
  EXPECT(is(choose_crews(0, 0), 4, 16));
  unsetenv("GITFAST_NUM_THREADS");
  for (const auto& [threads, lanes] : {std::pair{1, 1}, {2, 1}, {8, 1}, {31, 1}, {32, 2}, {64, 4}})
    EXPECT(default_lanes(threads) == lanes);
  for (const auto& [lanes, threads] : {std::pair{-1, 1}, {2000, 1}, {1024, 2}}) {
    bool thrown = false;
    try {
      choose_crews(lanes, threads);
    } catch (const Error& error) {
      thrown = std::string(error.what()).rfind("num_lanes", 0) == 0;
    }
    EXPECT(thrown);
  }
}

}  // namespace

void test_policy() {
  std::printf("policy\n");
  test_policy_bounds_the_gap_between_tokens();
  test_spreading_over_lanes();
  test_crews();
}

}  // namespace gitfast::cpu
