// The policy: the running batch's next action, and the division of rows and threads among lanes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/engine.h"
#include "cpu/policy.h"
#include "cpu/threads.h"
#include "tensor.h"
#include "tests/native_test.h"

namespace gitfast::cpu {
namespace {

Work busy(int64_t rows, double step, double slice) {
  Work work;
  work.rows = rows;
  work.images = true;
  work.step_cost = step;
  work.slice_cost = slice;
  return work;
}

// Encoding with rows that decode, in simulated time: what the policy makes of slices and steps that take so long.
struct Simulation {
  double slice, step;  // seconds
  double longest_gap = 0;
  int64_t slices = 0, steps = 0;

  void run(double duration) {
    Work work = busy(4, step, slice);
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
  Work work;
  work.rows = 1;
  EXPECT(next_action(work) == Action::step);
  work.rows = 0;
  work.images = true;
  EXPECT(next_action(work) == Action::slice);

  const Work none, rows = busy(3, 0.010, 0);
  EXPECT(images_together(8, 2, none, 0.05) == 2);
  EXPECT(images_together(1, 2, none, 0.05) == 1);
  EXPECT(images_together(8, 10, none, 0.05) == 8);
  EXPECT(images_together(8, 10, rows, 0.0048) == 4);  // 20 ms are left of the gap
  EXPECT(images_together(8, 10, rows, 0.050) == 1);
}

// Callers that ask for one caption after another, each of `kSlices` slices and `kTokens` steps.
struct ClosedLoop {
  static constexpr int64_t kSlices = 18, kTokens = 20;
  double slice, step, step_row;  // seconds; a step takes `step` and `step_row` for each of its rows
  double longest_gap = 0;
  std::vector<double> first{};  // seconds from a caption's begin to its first token
  int64_t steps = 0, rows = 0, captions = 0;

  void run(int64_t callers, double duration) {
    struct Row {
      double begun, told;
      int64_t tokens;
    };
    std::vector<double> queue(static_cast<size_t>(callers), 0.0);  // when each of those who wait began, the first first
    std::vector<Row> decoding;
    int64_t encoded = 0;  // slices of the image in front
    Work work;
    double last = 0;
    for (double now = 0; now < duration;) {
      work.rows = static_cast<int64_t>(decoding.size());
      work.images = !queue.empty();
      work.behind = std::max<int64_t>(0, static_cast<int64_t>(queue.size()) - 1);
      work.since_step = now - last;
      work.slice_cost = slice;
      work.step_cost = step + step_row * static_cast<double>(work.rows);
      if (next_action(work) == Action::slice) {
        now += slice;
        ++work.slices;
        if (++encoded < kSlices) continue;
        decoding.push_back({queue.front(), 0, 0});
        queue.erase(queue.begin());
        encoded = 0;
        work.begins = true;
        continue;
      }
      last = now += work.step_cost;
      work.slices = 0;
      work.begins = false;
      ++steps;
      rows += work.rows;
      for (Row& row : decoding) {
        if (++row.tokens == 1)
          first.push_back(now - row.begun);
        else
          longest_gap = std::max(longest_gap, now - row.told);
        row.told = now;
      }
      const auto done =
          std::remove_if(decoding.begin(), decoding.end(), [](const Row& row) { return row.tokens == kTokens; });
      captions += decoding.end() - done;
      queue.insert(queue.end(), static_cast<size_t>(decoding.end() - done), now);
      decoding.erase(done, decoding.end());
    }
  }
  double first_median() {
    std::nth_element(first.begin(), first.begin() + static_cast<int64_t>(first.size() / 2), first.end());
    return first[first.size() / 2];
  }
};

void test_callers_do_not_queue_for_the_encoder() {
  for (const auto& [slice, step, step_row] :
       {std::tuple{0.004, 0.006, 0.0004}, {0.0055, 0.006, 0.0006}, {0.018, 0.008, 0.001}, {0.045, 0.009, 0.0025}}) {
    ClosedLoop loop{slice, step, step_row};
    loop.run(8, 200);
    const double whole = 8 * 200.0 / static_cast<double>(loop.captions);  // seconds, by Little's law
    const double encoding = ClosedLoop::kSlices * slice;
    EXPECT(loop.first_median() < 0.35 * whole);
    EXPECT(loop.rows > 3 * loop.steps);
    EXPECT(loop.longest_gap < encoding + step + 8 * step_row + 1e-9);
    // No schedule has more captions than one whose steps are all shared by eight.
    EXPECT(static_cast<double>(loop.captions) > 0.92 * 200 / (encoding + 20 * (step + 8 * step_row) / 8));
  }
  ClosedLoop two{0.004, 0.006, 0.0004};  // nobody waits behind the other
  two.run(2, 100);
  EXPECT(two.longest_gap <= kTokenGapSeconds + 1e-9);

  Work work = busy(3, 0.010, 0.010);
  work.slices = 1;
  work.since_step = 0.030;
  EXPECT(next_action(work) == Action::step);
  work.behind = 1;  // 90 ms
  EXPECT(next_action(work) == Action::slice);
  work.since_step = 0.075;
  EXPECT(next_action(work) == Action::step);
  work.since_step = 0.030;
  work.begins = true;
  EXPECT(next_action(work) == Action::step);
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

// Empty: as if it were not set.
void set_threads_variable(const char* value) {
#if defined(_WIN32)
  _putenv_s("GITFAST_NUM_THREADS", value);
#else
  setenv("GITFAST_NUM_THREADS", value, 1);
#endif
}

void test_crews() {
  const auto is = [](Crews crews, int lanes, int threads) { return crews.lanes == lanes && crews.threads == threads; };
  set_threads_variable("6");
  EXPECT(is(choose_crews(0, 0), 1, 6));
  EXPECT(is(choose_crews(2, 0), 2, 3));
  EXPECT(is(choose_crews(4, 0), 4, 1));
  EXPECT(is(choose_crews(9, 0), 9, 1));
  EXPECT(is(choose_crews(0, 4), 1, 4));
  EXPECT(is(choose_crews(3, 4), 3, 4));
  set_threads_variable("64");
  EXPECT(is(choose_crews(0, 0), 4, 16));
  set_threads_variable("");
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
  test_callers_do_not_queue_for_the_encoder();
  test_spreading_over_lanes();
  test_crews();
}

}  // namespace gitfast::cpu
