// A linear layer of few rows, and of few rows that are normalised first: kernels and launch.
#include "cuda/activation.cuh"
#include "cuda/linear.cuh"
#include "cuda/norm.cuh"

namespace gitfast::cuda {
namespace {

// With this many columns a block has four tiles of them: the rows of x are read less often, and there are still blocks
// for every multiprocessor.
constexpr int64_t kManyColumns = 8192;

// Shared memory for the rows of x, and then for the sums.
template <class W, int kTiles>
__host__ __device__ size_t product_bytes(const Linear& args) {
  constexpr size_t kPartial = kProductWarps * kTiles * kTileSums * sizeof(float);  // where x was
  const size_t stage = StageLayout<W, kTiles>(args.rows, args.weight.depth).bytes;
  return stage > kPartial ? stage : kPartial;
}

// The terms of an output element beside its sum, loaded before the sum is there.
struct Addends {
  float scale = 1, bias = 0, residual = 0;
};

// Shared memory behind that of the product: what normalises the rows of x.
template <class T>
struct NormShared {
  T* terms;  // gamma and beta, (2, depth)
  float* partial;

  __device__ __forceinline__ NormShared(const NormLinear& args, unsigned char* at)
      : terms(reinterpret_cast<T*>(at)), partial(reinterpret_cast<float*>(terms + 2 * args.weight.depth)) {}
  static size_t bytes(const NormLinear& args) {
    return 2 * args.weight.depth * sizeof(T) + 2 * args.rows * kNormParts * sizeof(float);
  }

  // Sets gamma and beta on their way: a half of the threads each.
  __device__ __forceinline__ void load(const NormLinear& args) const {
    constexpr int kHalf = kProductThreads / 2;
    static_assert(kHalf * 8 >= kMaxNormLinearWidth);
    const int depth = static_cast<int>(args.weight.depth), half = threadIdx.x / kHalf, i = threadIdx.x % kHalf * 8;
    if (i < depth) cp_async16(terms + half * depth + i, static_cast<const T*>(half ? args.beta : args.gamma) + i, true);
    cp_async_commit();
  }

  // Normalises the staged rows; one block leaves them in memory. Waits for the block.
  __device__ __forceinline__ void normalise(const NormLinear& args, T* stage, int row_stride, int count) const {
    const int depth = static_cast<int>(args.weight.depth);
    const NormRows<T> rows{stage, row_stride, count, depth, terms, terms + depth, args.eps, partial};
    normalise_rows(rows, [&](int row, int element, const Vec<T, 8>& result) {
      T* to = static_cast<T*>(args.normalised) + row * args.normalised_stride + element;
      if (blockIdx.x == 0) store_vec(reinterpret_cast<Vec<T, 8>*>(to), result);
    });
  }
};

// The work of a block, on kTiles tiles of columns and 16 rows. Args: Linear or NormLinear.
template <class T, class W, int kTiles, class Args>
__device__ __forceinline__ void multiply_tiles(const Args& args) {
  constexpr bool kNorm = std::is_same_v<Args, NormLinear>;
  GITFAST_SHARED(unsigned char, shared);
  constexpr int kColumns = kTiles * kTileColumns,
                kOwn = (kProductRows * kColumns + kProductThreads - 1) / kProductThreads;
  let_next_kernel_start();
  const int64_t row0 = int64_t{blockIdx.y} * kProductRows, rows = args.rows - row0;
  const int count = rows < kProductRows ? static_cast<int>(rows) : kProductRows;
  const int64_t first = int64_t{blockIdx.x} * kTiles;
  TileProduct<T, W, kTiles> product(args.weight, first, tiles_of(args.weight.columns));
  if constexpr (kNorm) NormShared<T>(args, shared + product_bytes<W, kTiles>(args)).load(args);

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
  T* stage = reinterpret_cast<T*>(shared);
  if constexpr (kNorm) {
    const StageLayout<W, kTiles> layout(args.rows, args.weight.depth);
    static_assert(layout.kRound * layout.kDepth >= kMaxNormLinearWidth, "a part holds all of a row");
    const NormShared<T> norm(args, shared + product_bytes<W, kTiles>(args));
    product.multiply_prepared(x, layout, stage, [&] { norm.normalise(args, stage, layout.row_stride, count); });
  } else {
    product.multiply(x, StageLayout<W, kTiles>(args.rows, args.weight.depth), stage);
  }
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
__global__ void __launch_bounds__(kProductThreads) linear_kernel(Linear args) {
  multiply_tiles<T, W, kTiles>(args);
}

template <class T, class W>
__global__ void __launch_bounds__(kProductThreads) norm_linear_kernel(NormLinear args) {
  multiply_tiles<T, W, 1>(args);
}

template <int kTiles>
dim3 grid_of(const Linear& args) {
  return dim3((tiles_of(args.weight.columns) + kTiles - 1) / kTiles, (args.rows + kProductRows - 1) / kProductRows);
}

template <class T, class W, int kTiles>
void launch(const Linear& args, cudaStream_t stream) {
  const size_t shared = product_bytes<W, kTiles>(args);
  launch_kernel({"linear_kernel", grid_of<kTiles>(args), dim3(kProductThreads), shared, stream, args.overlap},
                linear_kernel<T, W, kTiles>, args);
}

template <class T, class W>
void launch(const NormLinear& args, cudaStream_t stream) {
  const size_t shared = product_bytes<W, 1>(args) + NormShared<T>::bytes(args);
  launch_kernel({"norm_linear_kernel", grid_of<1>(args), dim3(kProductThreads), shared, stream, args.overlap},
                norm_linear_kernel<T, W>, args);
}

void check(const Linear& args) {
  check_weight(args.weight, args.dtype);
  if (!aligned(args.x, args.x_stride * 2, 16)) throw Error("x: expected rows that start at multiples of 16 bytes");
  if (args.rows > int64_t{65535} * kProductRows) throw Error("x: too many rows: " + std::to_string(args.rows));
}

void check_norm(const NormLinear& args) {
  static_assert(kMaxNormLinearRows <= kProductRows && kMaxNormLinearWidth == kNormParts * kNormPart);
  if (args.rows > kMaxNormLinearRows || args.weight.depth > kMaxNormLinearWidth)
    throw Error("x: expected at most " + std::to_string(kMaxNormLinearRows) + " rows of " +
                std::to_string(kMaxNormLinearWidth) + " elements, got " + std::to_string(args.rows) + " of " +
                std::to_string(args.weight.depth));
  if (!aligned(args.gamma, 0, 16) || !aligned(args.beta, 0, 16))
    throw Error("gamma, beta: expected data at multiples of 16 bytes");
  if (!aligned(args.normalised, args.normalised_stride * 2, 16))
    throw Error("normalised: expected rows that start at multiples of 16 bytes");
  if (args.normalised == args.x) throw Error("normalised: expected other memory than that of x, which all blocks read");
}

}  // namespace

void linear(const Linear& args, CUstream_st* stream) {
  check(args);
  if (args.rows == 0) return;
  const DeviceScope device(args.device);
  with_types(args.dtype, args.weight.dtype, [&](auto types) {
    using T = typename decltype(types)::Input;
    using W = typename decltype(types)::Weight;
    args.weight.columns < kManyColumns ? launch<T, W, 1>(args, stream) : launch<T, W, 4>(args, stream);
  });
}

void norm_linear(const NormLinear& args, CUstream_st* stream) {
  check(args);
  check_norm(args);
  if (args.rows == 0) return;
  const DeviceScope device(args.device);
  with_types(args.dtype, args.weight.dtype, [&](auto types) {
    launch<typename decltype(types)::Input, typename decltype(types)::Weight>(args, stream);
  });
}

}  // namespace gitfast::cuda
