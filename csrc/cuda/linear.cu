// A linear layer of few rows: kernel and launch.
#include "cuda/activation.cuh"
#include "cuda/linear.cuh"

namespace gitfast::cuda {
namespace {

// With this many columns a block has four tiles of them: the rows of x are read less often, and there are still blocks
// for every multiprocessor.
constexpr int64_t kManyColumns = 8192;

template <class W, int kTiles>
size_t shared_bytes(const Linear& args) {
  constexpr size_t kPartial = kProductWarps * kTiles * kTileSums * sizeof(float);  // where x was
  const size_t stage = StageLayout<W, kTiles>(args.rows, args.weight.depth).bytes;
  return stage > kPartial ? stage : kPartial;
}

// The terms of an output element beside its sum, loaded before the sum is there.
struct Addends {
  float scale = 1, bias = 0, residual = 0;
};

// One block per kTiles tiles of columns and 16 rows.
template <class T, class W, int kTiles>
__global__ void __launch_bounds__(kProductThreads) linear_kernel(Linear args) {
  GITFAST_SHARED(unsigned char, shared);
  constexpr int kColumns = kTiles * kTileColumns,
                kOwn = (kProductRows * kColumns + kProductThreads - 1) / kProductThreads;
  let_next_kernel_start();
  const int64_t row0 = int64_t{blockIdx.y} * kProductRows, rows = args.rows - row0;
  const int count = rows < kProductRows ? static_cast<int>(rows) : kProductRows;
  const int64_t first = int64_t{blockIdx.x} * kTiles;
  TileProduct<T, W, kTiles> product(args.weight, first, tiles_of(args.weight.columns));

  Addends addends[kOwn];
  // For this thread's elements of the output: run(addends, row of the tile, column of the tile, column).
  const auto for_own = [&](auto run) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = threadIdx.x + i * kProductThreads, row = at / kColumns;
      const int64_t column = first * kTileColumns + at % kColumns;
      if (row < count && column < args.weight.columns) run(addends[i], row, at % kColumns, column);
    }
  };
  for_own([&](Addends& own, int, int, int64_t column) {
    if (args.weight.scales) own.scale = args.weight.scales[column];
    if (args.bias) own.bias = to_float(static_cast<const T*>(args.bias)[column]);
  });
  wait_for_previous_kernel();
  if (args.residual)
    for_own([&](Addends& own, int row, int, int64_t column) {
      own.residual = to_float(
          load_after_wait(static_cast<const T*>(args.residual) + (row0 + row) * args.residual_stride + column));
    });

  const InputRows<T> x{static_cast<const T*>(args.x) + row0 * args.x_stride, args.x_stride, count};
  product.multiply(x, StageLayout<W, kTiles>(args.rows, args.weight.depth), reinterpret_cast<T*>(shared));
  __syncthreads();  // before the sums overwrite x
  float* partial = reinterpret_cast<float*>(shared);
  product.store(partial);
  for_own([&](const Addends& own, int row, int tile_column, int64_t column) {
    const float sum = whole_sum<kTiles>(partial, row, tile_column);
    const float y = activate(args.activation, fmaf(sum, own.scale, own.bias)) + own.residual;
    static_cast<T*>(args.out)[(row0 + row) * args.out_stride + column] = from_float<T>(y);
  });
}

template <class T, class W, int kTiles>
void launch(const Linear& args, cudaStream_t stream) {
  const dim3 grid((tiles_of(args.weight.columns) + kTiles - 1) / kTiles, (args.rows + kProductRows - 1) / kProductRows);
  const size_t shared = shared_bytes<W, kTiles>(args);
  launch_kernel({"linear_kernel", grid, dim3(kProductThreads), shared, stream, args.overlap},
                linear_kernel<T, W, kTiles>, args);
}

}  // namespace

void linear(const Linear& args, CUstream_st* stream) {
  check_weight(args.weight, args.dtype);
  if (!aligned(args.x, args.x_stride * 2, 16)) throw Error("x: expected rows that start at multiples of 16 bytes");
  if (args.rows > int64_t{65535} * kProductRows) throw Error("x: too many rows: " + std::to_string(args.rows));
  if (args.rows == 0) return;
  const DeviceScope device(args.device);
  with_types(args.dtype, args.weight.dtype, [&](auto types) {
    using T = typename decltype(types)::Input;
    using W = typename decltype(types)::Weight;
    args.weight.columns < kManyColumns ? launch<T, W, 1>(args, stream) : launch<T, W, 4>(args, stream);
  });
}

}  // namespace gitfast::cuda
