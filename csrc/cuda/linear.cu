#include "cuda/activation.cuh"
#include "cuda/linear.cuh"

namespace gitfast::cuda {
namespace {

// With this many columns a block has four tiles of them: the rows of x are read less often, and there are still blocks
// for every multiprocessor.
constexpr int64_t kManyColumns = 8192;

// One block per kTiles tiles of columns and 16 rows.
template <class T, class W, int kTiles>
__global__ void linear_kernel(Linear args) {
  GITFAST_SHARED(float, partial);
  let_next_kernel_start();
  const int64_t row0 = int64_t{blockIdx.y} * kProductRows, rows = args.rows - row0;
  const int count = rows < kProductRows ? static_cast<int>(rows) : kProductRows;
  const int64_t first = int64_t{blockIdx.x} * kTiles, tiles = tiles_of(args.weight.columns);
  const InputRows<T> x{static_cast<const T*>(args.x) + row0 * args.x_stride, args.x_stride, count};
  multiply<T, W, kTiles>(x, args.weight, first, tiles, partial);

  constexpr int kColumns = kTiles * kTileColumns;
  for (int i = threadIdx.x; i < count * kColumns; i += blockDim.x) {
    const int row = i / kColumns;
    const int64_t column = first * kTileColumns + i % kColumns;
    if (column >= args.weight.columns) continue;
    const float sum = whole_sum<kTiles>(partial, row, i % kColumns);
    float y = activate(args.activation, scale_and_bias<T>(sum, args.weight, args.bias, column));
    if (args.residual)
      y += to_float(static_cast<const T*>(args.residual)[(row0 + row) * args.residual_stride + column]);
    static_cast<T*>(args.out)[(row0 + row) * args.out_stride + column] = from_float<T>(y);
  }
}

template <class T, class W, int kTiles>
void launch(const Linear& args, cudaStream_t stream) {
  const dim3 grid((tiles_of(args.weight.columns) + kTiles - 1) / kTiles, (args.rows + kProductRows - 1) / kProductRows);
  constexpr size_t kShared = kProductWarps * kTiles * kTileSums * sizeof(float);
  launch_kernel({"linear_kernel", grid, dim3(kProductWarps * kWarpSize), kShared, stream, args.overlap},
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
