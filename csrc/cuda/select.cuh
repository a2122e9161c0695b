// The likeliest tokens of a row, in two steps: of every part of the vocabulary, then of all parts.
#pragma once

#include <climits>
#include <cmath>

#include "cuda/ptx.h"
#include "cuda/select.h"
#include "cuda/warp.cuh"

namespace gitfast::cuda {

struct Choice {
  float value;
  int32_t token;
};
constexpr int32_t kNoToken = INT32_MAX;

__device__ __forceinline__ bool better(const Choice& a, const Choice& b) {
  return a.value > b.value || (a.value == b.value && a.token < b.token);
}

__device__ __forceinline__ Choice best_of_warp(Choice mine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const Choice other{__shfl_xor_sync(kAllLanes, mine.value, lanes), __shfl_xor_sync(kAllLanes, mine.token, lanes)};
    if (better(other, mine)) mine = other;
  }
  return mine;
}

// The weights of a part's tokens are relative to its largest logit; one that has none weighs nothing. `temperature`
// takes back what the logits were divided by.
__device__ __forceinline__ float weight_of(float logit, float peak, float temperature = 1) {
  return exp2f((logit - (peak == -INFINITY ? 0.0f : peak)) * temperature * kLog2E);
}

// Throws Error for so many choices of each row.
inline void check_choices(int64_t choices, int64_t tokens) {
  const int64_t most = tokens < kMaxChoices ? tokens : kMaxChoices;
  if (choices < 1 || choices > most)
    throw Error("tokens: expected 1 to " + std::to_string(most) + " choices per row, got " + std::to_string(choices));
}

// Results per part of every row.
struct PartChoices {
  Choice* choices;  // [rows][parts][count], descending
  float* totals;    // [rows][parts]: the sum of weights
  int64_t parts;
  int count;

  __host__ __device__ PartChoices(void* memory, int64_t rows, int64_t parts, int64_t count)
      : choices(static_cast<Choice*>(memory)),
        totals(reinterpret_cast<float*>(choices + rows * parts * count)),
        parts(parts),
        count(static_cast<int>(count)) {}

  // The largest logit of part `at` of all rows' parts.
  __device__ __forceinline__ float peak_of(int64_t at) const { return choices[at * count].value; }

  static __host__ __device__ int64_t bytes(int64_t rows, int64_t parts, int64_t count) {
    return rows * parts * (count * static_cast<int64_t>(sizeof(Choice)) + static_cast<int64_t>(sizeof(float)));
  }
};

// For one warp: the best of `columns` logits, which belong to tokens from `first` on; kOfLane a lane at most. Returns
// the largest.
template <int kOfLane>
__device__ __forceinline__ float choose_in_part(const PartChoices& known, int64_t row, int64_t part,
                                                const float* logits, int32_t first, int columns) {
  const int lane = threadIdx.x % kWarpSize;
  Choice mine[kOfLane];
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const int column = lane + i * kWarpSize;
    mine[i] = {-INFINITY, kNoToken};
    if (column < columns) mine[i] = {logits[column], first + column};
  }
  const int64_t at = row * known.parts + part;
  float peak = 0;
  for (int k = 0; k < known.count; ++k) {
    Choice top{-INFINITY, kNoToken};
#pragma unroll
    for (int i = 0; i < kOfLane; ++i)
      if (better(mine[i], top)) top = mine[i];
    top = best_of_warp(top);
    if (lane == 0) known.choices[at * known.count + k] = top;
    if (k == 0) {
      peak = top.value;
      float total = 0;
#pragma unroll
      for (int i = 0; i < kOfLane; ++i) total += weight_of(mine[i].value, peak);
      total = sum_of_warp(total);
      if (lane == 0) known.totals[at] = total;
    }
#pragma unroll
    for (int i = 0; i < kOfLane; ++i)
      if (mine[i].token == top.token) mine[i] = {-INFINITY, kNoToken};
  }
  return peak;
}

// A part's weight relative to the row's largest logit.
__device__ __forceinline__ double part_weight(const PartChoices& known, int64_t at, float peak) {
  return double{known.totals[at]} * double{weight_of(known.peak_of(at), peak)};
}

// For one warp: a row's choices (rows, count) from those of its parts. Calls found(peak, total) once, when the largest
// logit and the sum of weights relative to it are known, with whether they are numbers. taken [parts] is shared memory
// of this warp: how many of a part's choices are taken; each is one lane's own.
template <class Found>
__device__ __forceinline__ void choose_of_parts(const PartChoices& known, int64_t row, uint8_t* taken, int32_t* tokens,
                                                float* log_probs, Found found) {
  const int lane = threadIdx.x % kWarpSize, parts = static_cast<int>(known.parts);
#pragma unroll 1
  for (int part = lane; part < parts; part += kWarpSize) taken[part] = 0;
  Choice mine{-INFINITY, kNoToken};
  int from = -1;  // of which part
  float peak = 0, log_total = 0;
  bool sound = false;
  for (int k = 0; k < known.count; ++k) {
    if (k == 0 || from < 0) {  // the best of this lane's parts is new, or was taken
      mine = {-INFINITY, kNoToken};
      for (int part = lane; part < parts; part += kWarpSize) {
        const Choice next = load_after_wait(known.choices + (row * parts + part) * known.count + taken[part]);
        if (better(next, mine)) mine = next, from = part;
      }
    }
    const Choice top = best_of_warp(mine);
    if (from >= 0 && mine.token == top.token) ++taken[from], from = -1;
    if (k == 0) {
      peak = top.value;
      double total = 0;
      for (int part = lane; part < parts; part += kWarpSize) total += part_weight(known, row * parts + part, peak);
      total = sum_of_warp(total);
      sound = total > 0 && total < INFINITY;  // and not NaN
      log_total = logf(static_cast<float>(total));
      found(peak, total, sound);
    }
    if (lane > 0) continue;
    tokens[row * known.count + k] = sound ? top.token : -1;
    log_probs[row * known.count + k] = sound ? top.value - peak - log_total : NAN;
  }
}

}  // namespace gitfast::cuda
