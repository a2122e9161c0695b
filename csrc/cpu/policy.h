// The next action of the running batch: a step of text, or a slice of encoding. Pure functions of the waiting work and
// of past costs, so that they can be tested in simulated time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gitfast::cpu {

// The time between two tokens of a row stays below this while no call waits behind the one whose images are encoded, if
// one slice and one step together do.
constexpr double kTokenGapSeconds = 0.030;
// And below this where they do not: with a step after every slow slice, each image would be decoded by itself while the
// next is encoded, and rows would share no steps.
constexpr double kSlowTokenGapSeconds = 0.120;
// Each call that waits for its images behind those being encoded allows so many gaps more: rows that decode are ahead
// of it, and the sooner it joins them, the more of them share a step. With a fixed gap the rows would be through before
// the next images are, so that callers queued for the encoder and steps were run for one or two rows.
constexpr double kGapsPerWaitingCall = 2;

struct Work {
  int64_t rows = 0;       // sequences that decode or wait to begin
  bool begins = false;    // one of them has had no step yet
  bool images = false;    // some wait, or are being encoded
  int64_t behind = 0;     // calls whose images wait behind those being encoded
  int64_t slices = 0;     // run since the last step
  double since_step = 0;  // seconds
  double step_cost = 0;   // expected seconds of the next step
  double slice_cost = 0;  // and of the next slice
};

enum class Action : uint8_t { idle, step, slice };

// Steps go on while images are encoded, and as many slices go between two of them as the gap allows: one at least, so
// that encoding goes on however slow it is. A row that begins has its first token at once, which bounds a gap by the
// encoding of one image as well.
inline Action next_action(const Work& work) {
  if (work.rows == 0) return work.images ? Action::slice : Action::idle;
  if (!work.images) return Action::step;
  if (work.slices == 0) return Action::slice;
  if (work.begins) return Action::step;
  const double both = work.slice_cost + work.step_cost;
  const double gap = both <= kTokenGapSeconds ? kTokenGapSeconds : kSlowTokenGapSeconds;
  const double allowed = gap * (1 + kGapsPerWaitingCall * static_cast<double>(work.behind));
  return work.since_step + both <= allowed ? Action::slice : Action::step;
}

// The number of `waiting` images, of one call or of several, to encode together: no more than fill the threads, for
// encoding more at once delays the first of them, and what they become between layers leaves the caches. Beside rows
// that decode, no more than keep a slice within the gap.
inline int64_t images_together(int64_t waiting, int64_t fill, const Work& work, double image_slice_cost) {
  int64_t count = waiting < fill ? waiting : fill;
  if (work.rows > 0 && image_slice_cost > 0) {
    const auto within_gap = static_cast<int64_t>((kTokenGapSeconds - work.step_cost) / image_slice_cost);
    if (count > within_gap) count = within_gap;
  }
  return count < 1 ? 1 : count;
}

// How many of a call's items each lane gets: one after another to the lane that has least to do by then, the first of
// equals. `costs` are the items', `loads` the lanes'.
inline std::vector<int64_t> spread(const std::vector<int64_t>& costs, std::vector<int64_t> loads) {
  std::vector<int64_t> counts(loads.size());
  for (int64_t cost : costs) {
    const auto lane = static_cast<size_t>(std::min_element(loads.begin(), loads.end()) - loads.begin());
    loads[lane] += cost;
    ++counts[lane];
  }
  return counts;
}

}  // namespace gitfast::cpu
