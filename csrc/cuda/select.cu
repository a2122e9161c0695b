#include <climits>
#include <cmath>

#include "cuda/linear.cuh"
#include "cuda/select.h"
#include "random.h"

namespace gitfast::cuda {
namespace {

constexpr int kTiles = 4;                      // of columns that are multiplied at once
constexpr int kGroup = kTiles * kTileColumns;  // columns
constexpr int kGroups = 4;                     // of one block, one after another
constexpr int kPart = kGroups * kGroup;        // columns of one block: the parts of the vocabulary
constexpr int kOfLane = kPart / kWarpSize;     // columns of one lane
constexpr size_t kPartial = kProductWarps * kTiles * kTileSums;
constexpr size_t kShared = (kPartial + kProductRows * kPart) * sizeof(float);

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

__device__ __forceinline__ float warp_sum(float x) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// The weights of a part's tokens are relative to its largest logit; one that has none weighs nothing. `temperature`
// takes back what the logits were divided by.
__device__ __forceinline__ float weight_of(float logit, float peak, float temperature = 1) {
  return exp2f((logit - (peak == -INFINITY ? 0.0f : peak)) * temperature * kLog2E);
}

// What is known of every part of every row.
struct Workspace {
  Choice* choices;   // [rows][parts][choices], descending
  float* totals;     // [rows][parts]: the sum of weights
  float* raw;        // [rows][parts]: the same at a temperature of 1; where drawn_log_probs are asked for
  int32_t* part;     // [rows]: in which the quantile lies, -1 where nothing can be drawn
  float* remainder;  // [rows]: the weight before it within that part
  float* peak;       // [rows]: the largest logit
  float* raw_log;    // [rows]: the logarithm of the row's sum at a temperature of 1
  int64_t parts;

  __host__ __device__ Workspace(void* memory, int64_t rows, int64_t columns, int64_t choices)
      : choices(static_cast<Choice*>(memory)), parts((columns + kPart - 1) / kPart) {
    totals = reinterpret_cast<float*>(this->choices + rows * parts * choices);
    raw = totals + rows * parts;
    part = reinterpret_cast<int32_t*>(raw + rows * parts);
    remainder = reinterpret_cast<float*>(part + rows);
    peak = remainder + rows;
    raw_log = peak + rows;
  }
};

// The logits of rows [row0, row0 + 16) and of one part, [16][kPart] in shared memory; -inf beyond the last token.
template <class T, class W>
__device__ void part_logits(const HeadSelect& args, int64_t row0, int count, int64_t part, float* partial,
                            float* logits) {
  const int64_t columns = args.weight.columns, tiles = (columns + kTileColumns - 1) / kTileColumns;
  const InputRows<T> x{static_cast<const T*>(args.x) + row0 * args.x_stride, args.x_stride, count};
  for (int group = 0; group < kGroups; ++group) {
    multiply<T, W, kTiles>(x, args.weight, (part * kGroups + group) * kTiles, tiles, partial);
    for (int i = threadIdx.x; i < kProductRows * kGroup; i += blockDim.x) {
      const int row = i / kGroup, place = group * kGroup + i % kGroup;
      const int64_t column = part * kPart + place;
      float y = -INFINITY;
      if (column < columns) {
        y = whole_sum<kTiles>(partial, row, i % kGroup);
        if (args.weight.scales) y *= args.weight.scales[column];
        if (args.bias) y += to_float(static_cast<const T*>(args.bias)[column]);
        y /= args.temperature;
      }
      logits[row * kPart + place] = y;
    }
    __syncthreads();  // before the next sums, and before the logits are read
  }
}

// One block per part of the vocabulary and 16 rows; one warp per row of them.
template <class T, class W>
__global__ void choose_in_part_kernel(HeadSelect args) {
  GITFAST_SHARED(float, partial);
  float* logits = partial + kPartial;
  let_next_kernel_start();
  const int64_t row0 = int64_t{blockIdx.y} * kProductRows, rows = args.rows - row0, part = blockIdx.x;
  const int count = rows < kProductRows ? static_cast<int>(rows) : kProductRows;
  part_logits<T, W>(args, row0, count, part, partial, logits);

  const Workspace known(args.workspace, args.rows, args.weight.columns, args.choices);
  const int lane = threadIdx.x % kWarpSize;
  for (int row = threadIdx.x / kWarpSize; row < count; row += kProductWarps) {
    Choice mine[kOfLane];
    for (int i = 0; i < kOfLane; ++i) {
      const int place = lane + i * kWarpSize;
      const int64_t column = part * kPart + place;
      mine[i] = {logits[row * kPart + place], column < args.weight.columns ? static_cast<int32_t>(column) : kNoToken};
      if (args.logits && column < args.weight.columns)
        args.logits[(row0 + row) * args.weight.columns + column] = mine[i].value;
    }
    const int64_t at = (row0 + row) * known.parts + part;
    float peak = 0;
    for (int k = 0; k < args.choices; ++k) {
      Choice top{-INFINITY, kNoToken};
      for (int i = 0; i < kOfLane; ++i)
        if (better(mine[i], top)) top = mine[i];
      top = best_of_warp(top);
      if (lane == 0) known.choices[at * args.choices + k] = top;
      if (k == 0) {
        peak = top.value;
        float total = 0;
        for (int i = 0; i < kOfLane; ++i) total += weight_of(mine[i].value, peak);
        total = warp_sum(total);
        if (lane == 0) known.totals[at] = total;
        if (args.drawn_log_probs) {
          float raw = 0;
          for (int i = 0; i < kOfLane; ++i) raw += weight_of(mine[i].value, peak, args.temperature);
          raw = warp_sum(raw);
          if (lane == 0) known.raw[at] = raw;
        }
      }
      for (int i = 0; i < kOfLane; ++i)
        if (mine[i].token == top.token) mine[i] = {-INFINITY, kNoToken};
    }
  }
}

// A part's weight relative to the row's largest logit.
__device__ __forceinline__ double part_weight(const Workspace& known, int choices, int64_t at, float peak) {
  return double{known.totals[at]} * double{weight_of(known.choices[at * choices].value, peak)};
}

// For the log-probability of what will be drawn.
__device__ void keep_raw_log_sum(const HeadSelect& args, const Workspace& known, int64_t row, float peak) {
  double total = 0;
  for (int64_t part = threadIdx.x; part < known.parts; part += kWarpSize) {
    const int64_t at = row * known.parts + part;
    const float part_peak = known.choices[at * args.choices].value;
    total += double{known.raw[at]} * double{weight_of(part_peak, peak, args.temperature)};
  }
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(kAllLanes, total, lanes);
  if (threadIdx.x == 0) known.peak[row] = peak, known.raw_log[row] = logf(static_cast<float>(total));
}

// Which part holds `target` of the row's weight, in order of parts, and what of it lies before.
__device__ void find_part(const HeadSelect& args, const Workspace& known, int64_t row, float peak, double target) {
  const int lane = threadIdx.x, parts = static_cast<int>(known.parts);
  const int64_t at = row * parts;
  double before = 0, before_found = 0;
  int found = -1;
  for (int base = 0; base < parts; base += kWarpSize) {
    const int part = base + lane;
    const double own = part < parts ? part_weight(known, args.choices, at + part, peak) : 0;
    double upto = own;  // of this warp's parts
    for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
      const double other = __shfl_up_sync(kAllLanes, upto, lanes);
      if (lane >= lanes) upto += other;
    }
    // By rounding the target may lie behind everything: then the last part that weighs something has it.
    const unsigned candidates = __ballot_sync(kAllLanes, own > 0);
    const unsigned reached = __ballot_sync(kAllLanes, own > 0 && before + upto > target);
    if (candidates) {
      const int source = reached ? __ffs(reached) - 1 : kWarpSize - 1 - __clz(candidates);
      const double weight_before = __shfl_sync(kAllLanes, before + upto - own, source);
      found = base + source;
      before_found = weight_before;
    }
    if (reached) break;
    before += __shfl_sync(kAllLanes, upto, kWarpSize - 1);
  }
  if (lane > 0) return;
  known.part[row] = found;
  if (found < 0) return;
  const float part_peak = known.choices[(at + found) * args.choices].value;
  known.remainder[row] = static_cast<float>((target - before_found) / double{weight_of(part_peak, peak)});
}

// One warp per row.
__global__ void choose_kernel(HeadSelect args) {
  GITFAST_SHARED(uint8_t, taken);  // [parts]: how many of a part's choices are taken; each is one lane's own
  let_next_kernel_start();
  wait_for_previous_kernel();
  const Workspace known(args.workspace, args.rows, args.weight.columns, args.choices);
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x, parts = static_cast<int>(known.parts), choices = static_cast<int>(args.choices);
  for (int part = lane; part < parts; part += kWarpSize) taken[part] = 0;

  Choice mine{-INFINITY, kNoToken};
  int from = -1;  // of which part
  float peak = 0, log_total = 0;
  bool sound = false;
  for (int k = 0; k < choices; ++k) {
    if (k == 0 || from < 0) {  // the best of this lane's parts is new, or was taken
      mine = {-INFINITY, kNoToken};
      for (int part = lane; part < parts; part += kWarpSize) {
        const Choice next = load_after_wait(known.choices + (row * parts + part) * choices + taken[part]);
        if (better(next, mine)) mine = next, from = part;
      }
    }
    const Choice top = best_of_warp(mine);
    if (from >= 0 && mine.token == top.token) ++taken[from], from = -1;
    if (k == 0) {
      peak = top.value;
      double total = 0;
      for (int part = lane; part < parts; part += kWarpSize)
        total += part_weight(known, choices, row * parts + part, peak);
      for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(kAllLanes, total, lanes);
      sound = total > 0 && total < INFINITY;  // and not NaN
      log_total = logf(static_cast<float>(total));
      if (args.keys && sound) {
        find_part(args, known, row, peak, uniform(args.keys[row], *args.step) * total);
        if (args.drawn_log_probs) keep_raw_log_sum(args, known, row, peak);
      } else if (args.keys && lane == 0) {
        known.part[row] = -1;
      }
    }
    if (lane > 0) continue;
    args.tokens[row * choices + k] = sound ? top.token : -1;
    args.log_probs[row * choices + k] = sound ? top.value - peak - log_total : NAN;
  }
}

// One block per row: multiplies the part in which the row's quantile lies once more, and finds it.
template <class T, class W>
__global__ void draw_kernel(HeadSelect args) {
  GITFAST_SHARED(float, partial);
  float* logits = partial + kPartial;
  let_next_kernel_start();
  wait_for_previous_kernel();
  const Workspace known(args.workspace, args.rows, args.weight.columns, args.choices);
  const int64_t row = blockIdx.x;
  const int part = load_after_wait(known.part + row), lane = threadIdx.x % kWarpSize;
  if (part < 0) {
    if (threadIdx.x > 0) return;
    args.drawn[row] = -1;
    if (args.drawn_log_probs) args.drawn_log_probs[row] = NAN;
    return;
  }
  part_logits<T, W>(args, row, 1, part, partial, logits);
  if (threadIdx.x >= kWarpSize) return;

  const float peak = known.choices[(row * known.parts + part) * args.choices].value;
  float weights[kOfLane], own = 0;
  for (int i = 0; i < kOfLane; ++i) own += weights[i] = weight_of(logits[lane * kOfLane + i], peak);
  float upto = own;
  for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
    const float other = __shfl_up_sync(kAllLanes, upto, lanes);
    if (lane >= lanes) upto += other;
  }
  const unsigned candidates = __ballot_sync(kAllLanes, own > 0);
  const unsigned reached = __ballot_sync(kAllLanes, own > 0 && upto > known.remainder[row]);
  if (lane != (reached ? __ffs(reached) - 1 : kWarpSize - 1 - __clz(candidates))) return;
  float left = known.remainder[row] - (upto - own);
  int place = 0;
  for (int i = 0; i < kOfLane; ++i) {
    if (weights[i] == 0) continue;
    place = lane * kOfLane + i;
    left -= weights[i];
    if (left < 0) break;
  }
  args.drawn[row] = part * kPart + place;
  if (!args.drawn_log_probs) return;
  args.drawn_log_probs[row] = (logits[place] - known.peak[row]) * args.temperature - known.raw_log[row];
}

template <class T, class W>
void launch(const HeadSelect& args, cudaStream_t stream) {
  const auto parts = static_cast<unsigned>(Workspace(nullptr, 0, args.weight.columns, 0).parts);
  const auto rows = static_cast<unsigned>(args.rows);
  const dim3 block(kProductWarps * kWarpSize), grid(parts, (rows + kProductRows - 1) / kProductRows);
  launch_kernel({"choose_in_part_kernel", grid, block, kShared, stream, args.overlap}, choose_in_part_kernel<T, W>,
                args);
  launch_kernel({"choose_kernel", dim3(rows), dim3(kWarpSize), parts, stream, true}, choose_kernel, args);
  if (args.keys) launch_kernel({"draw_kernel", dim3(rows), block, kShared, stream, true}, draw_kernel<T, W>, args);
}

}  // namespace

int64_t select_workspace(int64_t rows, int64_t columns, int64_t choices) {
  const int64_t parts = (columns + kPart - 1) / kPart;
  return rows * (parts * (choices * static_cast<int64_t>(sizeof(Choice)) + 8) + 16);
}

void head_select(const HeadSelect& args, CUstream_st* stream) {
  check_weight(args.weight, args.dtype);
  if (!aligned(args.x, args.x_stride * 2, 16)) throw Error("x: expected rows that start at multiples of 16 bytes");
  if (!aligned(args.workspace, 0, 16)) throw Error("workspace: expected memory at a multiple of 16 bytes");
  const int64_t most = args.weight.columns < kMaxChoices ? args.weight.columns : kMaxChoices;
  if (args.choices < 1 || args.choices > most)
    throw Error("tokens: expected 1 to " + std::to_string(most) + " choices per row, got " +
                std::to_string(args.choices));
  if (!(args.temperature > 0) || args.temperature == INFINITY)
    throw Error("temperature: expected a positive number, got " + std::to_string(args.temperature));
  if (args.rows > int64_t{65535} * kProductRows) throw Error("x: too many rows: " + std::to_string(args.rows));
  if (args.rows == 0) return;
  const DeviceScope device(args.device);
  with_types(args.dtype, args.weight.dtype, [&](auto types) {
    launch<typename decltype(types)::Input, typename decltype(types)::Weight>(args, stream);
  });
}

}  // namespace gitfast::cuda
