// The output head with the choice of tokens: kernels and launch.
#include "cuda/linear.cuh"
#include "cuda/select.cuh"
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

// Shared memory of a block: partial sums, logits of 16 rows, and the rows of x.
constexpr size_t kLogitsAt = kPartial * sizeof(float);
constexpr size_t kStageAt = kLogitsAt + kProductRows * kPart * sizeof(float);

template <class W>
__host__ __device__ StageLayout<W, kTiles> stage_of(const HeadSelect& args, int64_t rows) {
  return StageLayout<W, kTiles>(rows, args.weight.depth);
}

// Results per part of every row, and per row.
struct Workspace : PartChoices {
  float* raw;        // [rows][parts]: `totals` at a temperature of 1; where drawn_log_probs are asked for
  int32_t* part;     // [rows]: in which the quantile lies, -1 where nothing can be drawn
  float* remainder;  // [rows]: the weight before it within that part
  float* peak;       // [rows]: the largest logit
  float* raw_log;    // [rows]: the logarithm of the row's sum at a temperature of 1

  __host__ __device__ explicit Workspace(const HeadSelect& args)
      : PartChoices(args.workspace, args.rows, parts_of(args.weight.columns), args.choices) {
    raw = totals + args.rows * parts;
    part = reinterpret_cast<int32_t*>(raw + args.rows * parts);
    remainder = reinterpret_cast<float*>(part + args.rows);
    peak = remainder + args.rows;
    raw_log = peak + args.rows;
  }

  static __host__ __device__ int64_t parts_of(int64_t columns) { return (columns + kPart - 1) / kPart; }
  static int64_t bytes(int64_t rows, int64_t columns, int64_t choices) {
    const int64_t parts = parts_of(columns), word = sizeof(float);
    return PartChoices::bytes(rows, parts, choices) + rows * (parts + 4) * word;
  }
};

// The logits of rows [row0, row0 + count) and of one part, [16][kPart] in shared memory; -inf beyond the last token.
// Waits for the previous kernel, the first weights on their way.
template <class T, class W>
__device__ void part_logits(const HeadSelect& args, int64_t row0, int count, int64_t part, unsigned char* shared) {
  float *partial = reinterpret_cast<float*>(shared), *logits = reinterpret_cast<float*>(shared + kLogitsAt);
  T* stage = reinterpret_cast<T*>(shared + kStageAt);
  const int64_t columns = args.weight.columns, tiles = tiles_of(columns);
  const InputRows<T> x{static_cast<const T*>(args.x) + row0 * args.x_stride, args.x_stride, count};
  const StageLayout<W, kTiles> layout = stage_of<W>(args, args.rows);
  for (int group = 0; group < kGroups; ++group) {
    TileProduct<T, W, kTiles> product(args.weight, (part * kGroups + group) * kTiles, tiles);
    if (group == 0) wait_for_previous_kernel();
    product.multiply(x, layout, stage, group > 0);
    product.store(partial);
    for (int i = threadIdx.x; i < kProductRows * kGroup; i += blockDim.x) {
      const int row = i / kGroup, index = group * kGroup + i % kGroup;
      const int64_t column = part * kPart + index;
      float y = -INFINITY;
      if (column < columns) {
        const float sum = whole_sum<kTiles>(partial, row, i % kGroup);
        y = scale_and_bias<T>(sum, args.weight, args.bias, column) / args.temperature;
      }
      logits[row * kPart + index] = y;
    }
    __syncthreads();  // before the next sums, and before the logits are read
  }
}

// One block per part of the vocabulary and 16 rows; one warp per row of them.
template <class T, class W>
__global__ void choose_in_part_kernel(HeadSelect args) {
  GITFAST_SHARED(unsigned char, shared);
  const float* logits = reinterpret_cast<const float*>(shared + kLogitsAt);
  let_next_kernel_start();
  const int64_t row0 = int64_t{blockIdx.y} * kProductRows, rows = args.rows - row0, part = blockIdx.x;
  const int count = rows < kProductRows ? static_cast<int>(rows) : kProductRows;
  part_logits<T, W>(args, row0, count, part, shared);

  const Workspace known(args);
  const int lane = threadIdx.x % kWarpSize;
  const int64_t first = part * kPart, left = args.weight.columns - first;
  const int columns = left < kPart ? static_cast<int>(left) : kPart;
  for (int row = threadIdx.x / kWarpSize; row < count; row += kProductWarps) {
    const float* own = logits + row * kPart;
    const float peak = choose_in_part<kOfLane>(known, row0 + row, part, own, static_cast<int32_t>(first), columns);
    float raw = 0;
    for (int i = lane; i < columns; i += kWarpSize) {
      if (args.logits) args.logits[(row0 + row) * args.weight.columns + first + i] = own[i];
      if (args.drawn_log_probs) raw += weight_of(own[i], peak, args.temperature);
    }
    if (!args.drawn_log_probs) continue;
    raw = sum_of_warp(raw);
    if (lane == 0) known.raw[(row0 + row) * known.parts + part] = raw;
  }
}

// For the log-probability of what will be drawn.
__device__ void keep_raw_log_sum(const HeadSelect& args, const Workspace& known, int64_t row, float peak) {
  double total = 0;
  for (int64_t part = threadIdx.x; part < known.parts; part += kWarpSize) {
    const int64_t at = row * known.parts + part;
    total += double{known.raw[at]} * double{weight_of(known.peak_of(at), peak, args.temperature)};
  }
  total = sum_of_warp(total);
  if (threadIdx.x == 0) known.peak[row] = peak, known.raw_log[row] = logf(static_cast<float>(total));
}

// Which part holds `target` of the row's weight, in order of parts, and what of it lies before.
__device__ void find_part(const Workspace& known, int64_t row, float peak, double target) {
  const int lane = threadIdx.x, parts = static_cast<int>(known.parts);
  const int64_t at = row * parts;
  double before = 0, before_found = 0;
  int found = -1;
  for (int base = 0; base < parts; base += kWarpSize) {
    const int part = base + lane;
    const double own = part < parts ? part_weight(known, at + part, peak) : 0;
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
  known.remainder[row] =
      static_cast<float>((target - before_found) / double{weight_of(known.peak_of(at + found), peak)});
}

// One warp per row.
__global__ void choose_kernel(HeadSelect args) {
  GITFAST_SHARED(uint8_t, taken);
  let_next_kernel_start();
  wait_for_previous_kernel();
  const Workspace known(args);
  const int64_t row = blockIdx.x;
  choose_of_parts(known, row, taken, args.tokens, args.log_probs, [&](float peak, double total, bool sound) {
    if (args.keys && sound) {
      find_part(known, row, peak, uniform(args.keys[row], args.step[row]) * total);
      if (args.drawn_log_probs) keep_raw_log_sum(args, known, row, peak);
    } else if (args.keys && threadIdx.x == 0) {
      known.part[row] = -1;
    }
  });
}

// One block per row: multiplies the part in which the row's quantile lies once more, and finds it.
template <class T, class W>
__global__ void draw_kernel(HeadSelect args) {
  GITFAST_SHARED(unsigned char, shared);
  const float* logits = reinterpret_cast<const float*>(shared + kLogitsAt);
  let_next_kernel_start();
  wait_for_previous_kernel();
  const Workspace known(args);
  const int64_t row = blockIdx.x;
  const int part = load_after_wait(known.part + row), lane = threadIdx.x % kWarpSize;
  if (part < 0) {
    if (threadIdx.x > 0) return;
    args.drawn[row] = -1;
    if (args.drawn_log_probs) args.drawn_log_probs[row] = NAN;
    return;
  }
  part_logits<T, W>(args, row, 1, part, shared);
  if (threadIdx.x >= kWarpSize) return;

  const float peak = known.peak_of(row * known.parts + part);
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
  int index = 0;
  for (int i = 0; i < kOfLane; ++i) {
    if (weights[i] == 0) continue;
    index = lane * kOfLane + i;
    left -= weights[i];
    if (left < 0) break;
  }
  args.drawn[row] = part * kPart + index;
  if (!args.drawn_log_probs) return;
  args.drawn_log_probs[row] = (logits[index] - known.peak[row]) * args.temperature - known.raw_log[row];
}

template <class T, class W>
void launch(const HeadSelect& args, cudaStream_t stream) {
  const auto parts = static_cast<unsigned>(Workspace::parts_of(args.weight.columns));
  const auto rows = static_cast<unsigned>(args.rows);
  const dim3 block(kProductWarps * kWarpSize), grid(parts, (rows + kProductRows - 1) / kProductRows);
  const size_t shared = kStageAt + stage_of<W>(args, args.rows).bytes;
  launch_kernel({"choose_in_part_kernel", grid, block, shared, stream, args.overlap}, choose_in_part_kernel<T, W>,
                args);
  launch_kernel({"choose_kernel", dim3(rows), dim3(kWarpSize), parts, stream, true}, choose_kernel, args);
  if (args.keys) launch_kernel({"draw_kernel", dim3(rows), block, shared, stream, true}, draw_kernel<T, W>, args);
}

}  // namespace

int64_t select_workspace(int64_t rows, int64_t columns, int64_t choices) {
  return Workspace::bytes(rows, columns, choices);
}

void head_select(const HeadSelect& args, CUstream_st* stream) {
  check_weight(args.weight, args.dtype);
  if (!aligned(args.x, args.x_stride * 2, 16)) throw Error("x: expected rows that start at multiples of 16 bytes");
  if (!aligned(args.workspace, 0, 16)) throw Error("workspace: expected memory at a multiple of 16 bytes");
  check_choices(args.choices, args.weight.columns);
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
