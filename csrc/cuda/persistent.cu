// Whole sequences in one kernel: steps, choice of tokens and search between barriers of the grid; launch.
#include "cuda/decode.cuh"
#include "cuda/persistent.h"
#include "cuda/search.cuh"
#include "cuda/select.cuh"

namespace gitfast::cuda {
namespace {

static_assert(sizeof(PersistentDecode) <= 4096, "arguments of a kernel");
constexpr int kStages = 32;  // one block on a multiprocessor: 128 KB of weights are on their way
constexpr int kMostOfLane = 16;
constexpr int kMostColumns = kMostOfLane * kWarpSize;  // of the head in one block

// The tiles of the head that a block has, in as many products as `scratch` has room for.
struct HeadShare {
  int first, tiles, products;

  __host__ __device__ HeadShare(int64_t columns, int block, int blocks) {
    const int64_t all = tiles_of(columns);
    first = static_cast<int>(all * block / blocks);
    tiles = static_cast<int>(all * (block + 1) / blocks) - first;
    products = static_cast<int>((all / blocks + 1 + kMostTiles - 1) / kMostTiles);  // in every block as many
  }
};

// Shared memory of a block: that of decoding, and the logits of its part of the head, float [8][most columns].
struct PersistentShared {
  size_t logits, flag, bytes;
  int logits_stride;

  __host__ __device__ PersistentShared(const DecodeStep& decode, int64_t columns, int blocks) {
    logits = DecodeShared(kStages, decode.hidden, decode.intermediate / decode.heads, decode.cluster).bytes;
    logits_stride = static_cast<int>(tiles_of(columns) / blocks + 1) * kTileColumns;
    if (logits_stride < blocks) logits_stride = blocks;  // where a byte per block stands later on
    flag = logits + size_t{kStreamRows} * logits_stride * sizeof(float);
    bytes = flag + 128;
  }
};

// Until all sequences have ended, one after another at worst.
__host__ __device__ __forceinline__ int most_steps(const PersistentDecode& args) {
  return static_cast<int>(args.search.max_steps * args.search.sequences);
}

// The products of a block, step after step.
template <class W>
struct PersistentProgram {
  const PersistentDecode* args;
  BlockPosition position;
  HeadShare head;

  __device__ __forceinline__ int products_of_step() const { return 4 * args->decode.layers + head.products; }
  __device__ __forceinline__ Product operator()(int number) const {
    const int i = number % products_of_step(), layer = i / 4;
    if (layer >= args->decode.layers) return head_product(i - 4 * args->decode.layers);
    if (i % 4 == 0) return Products<W>::qkv(args->decode, layer, position);
    if (i % 4 == 1) return Products<W>::out(args->decode, layer, position);
    return i % 4 == 2 ? Products<W>::fc1(args->decode, layer, position)
                      : Products<W>::fc2(args->decode, layer, position);
  }
  __device__ __forceinline__ Product head_product(int i) const {
    Product p = Products<W>::shared_out(args->head, 0, position);
    p.first = head.first + head.tiles * i / head.products;
    p.count = head.first + head.tiles * (i + 1) / head.products - p.first;
    return p;
  }
};

// A barrier of all blocks of the grid, for as many rounds as a kernel has. A round ends well for all blocks, or for
// none: giving up changes the counter, if it has not changed, so that who comes late sees it.
class GridBarrier {
 public:
  __device__ __forceinline__ GridBarrier(uint32_t* counter, int* flag) : counter_(counter), flag_(flag) {}

  // Waits for all blocks: what each wrote before, all see after. False, for the rest of the kernel, when some do not
  // come.
  __device__ __forceinline__ bool wait() {
    __syncthreads();
    if (threadIdx.x == 0) {
      target_ += gridDim.x;
      add_release(counter_, 1);
      unsigned polls = 0, seen = load_acquire(counter_);
      while (!broken(seen) && static_cast<int>(seen) < target_)
        seen = keep_polling(polls) ? load_acquire(counter_) : give_up(seen);
      *flag_ = !broken(seen);
    }
    __syncthreads();
    return *flag_ != 0;
  }

 private:
  static constexpr unsigned kBroken = 1u << 30;  // no count comes near
  static __device__ __forceinline__ bool broken(unsigned count) { return count >> 30 == kBroken >> 30; }

  __device__ __forceinline__ unsigned give_up(unsigned seen) {
    const unsigned found = compare_exchange(counter_, seen, kBroken);
    if (found != seen) return found;
    counter_[1] = 1;
    return kBroken;
  }

  uint32_t* counter_;
  int* flag_;
  int target_ = 0;  // of thread 0
};

// The stream and the block of decoding are variables of the kernel: as members they would live in memory.
template <class T, class W, class Stream, class Decoding>
class PersistentBlock {
 public:
  __device__ __forceinline__ PersistentBlock(const PersistentDecode& args, unsigned char* shared,
                                             const PersistentProgram<W>& program, Stream& stream, Decoding& decoding)
      : args_(args),
        layout_(args.decode, args.head.columns, gridDim.x),
        logits_(reinterpret_cast<float*>(shared + layout_.logits)),
        program_(program),
        stream_(stream),
        decode_(decoding),
        barrier_(args.barrier, reinterpret_cast<int*>(shared + layout_.flag)),
        known_(args.workspace, args.decode.rows, gridDim.x, args.choices) {}

  __device__ __forceinline__ void run() {
    cluster_sync();  // the others have begun: their shared memory may be written
    wait_for_previous_kernel();
    if (args_.placement && threadIdx.x == 0) args_.placement[blockIdx.x] = multiprocessor();
    const uint32_t sequences = *args_.search.queued;
    for (int step = 0; step < most_steps(args_); ++step) {
      if (!decode() || !choose(step) || *args_.search.num_ended == sequences) break;
    }
    stream_.drain();
    cluster_sync();  // nobody writes to the shared memory of a block that has left
  }

 private:
  // Leaves the last layer's rows in shared memory.
  __device__ __forceinline__ bool decode() {
    const DecodeStep& decode = args_.decode;
    float* partials[2] = {decode.partials, decode.partials + int64_t{decode.heads} * decode.rows * decode.hidden};
    decode_.embed();
    for (int i = 0; i < decode.layers; ++i) {
      const DecodeLayer& layer = decode.layer[i];
      decode_.attend(i, partials[0]);
      if (!barrier_.wait()) return false;
      decode_.add_partials(partials[0], layer.gamma1, layer.beta1);
      decode_.mlp(i, partials[1]);
      if (!barrier_.wait()) return false;
      decode_.add_partials(partials[1], layer.gamma2, layer.beta2);
    }
    return true;
  }

  // Every block the best of its part of the vocabulary, then the first block the best of all and the next step's rows.
  __device__ __forceinline__ bool choose(int step) {
    part_logits();
    const int warp = threadIdx.x / kWarpSize, columns = program_.head.tiles * kTileColumns;
    const int rows = args_.decode.rows, first = program_.head.first * kTileColumns;
    if (warp < rows) {
      const auto here = static_cast<int>(args_.head.columns) - first;
      choose_in_part<kMostOfLane>(known_, warp, static_cast<int>(blockIdx.x), logits_ + warp * layout_.logits_stride,
                                  first, columns < here ? columns : here);
    }
    if (!barrier_.wait()) return false;
    if (blockIdx.x == 0) {
      auto* taken = reinterpret_cast<uint8_t*>(logits_ + warp * layout_.logits_stride);
      const auto nothing = [](float, double, bool) {};
      if (warp < rows) choose_of_parts(known_, warp, taken, args_.tokens, args_.log_probs, nothing);
      __syncthreads();
      const Choices choices{args_.choices, args_.tokens, args_.log_probs, nullptr, nullptr};
      for (int slot = warp; slot < args_.search.slots; slot += kProductWarps) advance_slot(args_.search, choices, slot);
      __syncthreads();
      publish(step);
    }
    return barrier_.wait();
  }

  // Rows times this block's part of the head, with the bias: float [8][columns].
  __device__ __forceinline__ void part_logits() {
    for (int i = 0; i < program_.head.products; ++i) {
      const Product product = program_.head_product(i);
      multiply_rows<T, W>(stream_, product, decode_.rows(), decode_.layout().row_stride, decode_.scratch());
      const int columns = product.count * kTileColumns, at = (product.first - program_.head.first) * kTileColumns;
      for (int j = threadIdx.x; j < args_.decode.rows * columns; j += blockDim.x) {
        const int row = j / columns, column = j % columns, token = product.column(column);
        float y = -INFINITY;
        if (token < args_.head.columns) {
          const float sum = whole_sum_of(product, decode_.scratch(), row, column);
          y = scale_and_bias<T>(sum, args_.head, args_.head_bias, token);
        }
        logits_[row * layout_.logits_stride + at + column] = y;
      }
      __syncthreads();  // before the next sums, and before the logits are read
    }
  }

  // Gives the tokens of a step to the host, if it listens.
  __device__ __forceinline__ void publish(int step) {
    if (!args_.token_stream) return;
    const int rows = args_.decode.rows;
    for (int row = threadIdx.x; row < rows; row += blockDim.x)
      args_.token_stream[1 + step * rows + row] = args_.search.tokens[step * rows + row];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) *static_cast<volatile int32_t*>(args_.token_stream) = step + 1;
  }

  const PersistentDecode& args_;
  const PersistentShared layout_;
  float* logits_;
  const PersistentProgram<W> program_;
  Stream& stream_;
  Decoding& decode_;
  GridBarrier barrier_;
  const PartChoices known_;
};

template <class T, class W>
__global__ void __launch_bounds__(kStreamThreads, 1)
    persistent_decode_kernel(const __grid_constant__ PersistentDecode args) {
  GITFAST_SHARED(unsigned char, shared);
  using Stream = WeightStream<PersistentProgram<W>, kStages>;
  using Decoding = DecodeBlock<T, W, kStages, Stream>;
  const PersistentProgram<W> program{&args, position_of(args.decode),
                                     HeadShare(args.head.columns, blockIdx.x, gridDim.x)};
  Stream stream(reinterpret_cast<WeightChunk*>(shared), program, most_steps(args) * program.products_of_step());
  Decoding decoding(args.decode, shared, stream);
  PersistentBlock<T, W, Stream, Decoding>(args, shared, program, stream, decoding).run();
}

Launch launch_of(const PersistentDecode& args) {
  const int blocks = args.decode.heads * args.decode.cluster;
  Launch launch{"persistent_decode_kernel", dim3(static_cast<unsigned>(blocks)), dim3(kStreamThreads),
                PersistentShared(args.decode, args.head.columns, blocks).bytes, nullptr};
  launch.cluster = static_cast<unsigned>(args.decode.cluster);
  launch.cooperative = true;
  return launch;
}

int64_t blocks_of(const PersistentDecode& args) { return int64_t{args.decode.heads} * args.decode.cluster; }

// True where a block's part of the head is small enough for choose_in_part.
bool lanes_hold(const PersistentDecode& args) {
  return (tiles_of(args.head.columns) / blocks_of(args) + 1) * kTileColumns <= kMostColumns;
}

void check_persistent_decode(const PersistentDecode& args) {
  check_decode_step(args.decode);
  check_weight(args.head, args.decode.dtype);
  const auto fail = [](const std::string& name, const std::string& expected, int64_t got) {
    throw Error(name + ": expected " + expected + ", got " + std::to_string(got));
  };
  if (args.head.dtype != args.decode.layer[0].qkv.dtype)
    throw Error(std::string("head: expected ") + dtype_name(args.decode.layer[0].qkv.dtype) + ", as the layers, got " +
                dtype_name(args.head.dtype));
  if (args.head.depth != args.decode.hidden)
    fail("head", "a depth of " + std::to_string(args.decode.hidden), args.head.depth);
  if (!lanes_hold(args))
    fail("head", "at most " + std::to_string((kMostColumns - kTileColumns) * blocks_of(args)) + " tokens",
         args.head.columns);
  check_choices(args.choices, args.head.columns);
  if (args.search.slots * args.search.rows_per_slot != args.decode.rows)
    fail("rows", std::to_string(args.search.slots * args.search.rows_per_slot), args.decode.rows);
  if (args.token_stream && args.search.rows_per_slot > 1) throw Error("token_stream: beams change until the end");
  if (args.token_stream && args.search.sequences > args.search.slots)
    fail("token_stream", std::to_string(args.search.slots) + " sequences, all at once", args.search.sequences);
}

#ifdef __CUDACC__
template <class T, class W>
bool fits(const PersistentDecode& args) {
  Launch launch = launch_of(args);
  int shared = 0, clusters = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, args.decode.device),
        "cudaDeviceGetAttribute");
  if (launch.shared_bytes > static_cast<size_t>(shared)) return false;
  check(cudaFuncSetAttribute(persistent_decode_kernel<T, W>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {launch.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaOccupancyMaxActiveClusters(&clusters, persistent_decode_kernel<T, W>, &config),
        "cudaOccupancyMaxActiveClusters");
  return clusters >= args.decode.heads;
}
#endif

}  // namespace

int64_t persistent_workspace(const PersistentDecode& args) {
  return PartChoices::bytes(args.decode.rows, blocks_of(args), args.choices);
}

bool fits_persistent_decode(const PersistentDecode& args) {
  if (!lanes_hold(args)) return false;
#ifdef __CUDACC__
  const DeviceScope device(args.decode.device);
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, args.decode.device),
        "cudaDeviceGetAttribute");
  bool can = false;
  if (major >= 9)
    with_decode_types(args.decode, [&](auto types) {
      can = fits<typename decltype(types)::Input, typename decltype(types)::Weight>(args);
    });
  return can;
#else
  return true;
#endif
}

void persistent_decode(const PersistentDecode& args, CUstream_st* stream) {
  check_persistent_decode(args);
  const DeviceScope device(args.decode.device);
  Launch launch = launch_of(args);
  launch.stream = stream;
  with_decode_types(args.decode, [&](auto types) {
    launch_kernel(launch, persistent_decode_kernel<typename decltype(types)::Input, typename decltype(types)::Weight>,
                  args);
  });
}

}  // namespace gitfast::cuda
