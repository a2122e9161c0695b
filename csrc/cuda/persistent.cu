// Whole sequences in one kernel: steps, choice of tokens and search between barriers of the grid; launch.
#include "cuda/decode.cuh"
#include "cuda/persistent.h"
#include "cuda/search.cuh"
#include "cuda/select.cuh"

namespace gitfast::cuda {
namespace {

constexpr int kGroups = 8;  // one block on a multiprocessor: 128 KB of weights are on their way
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

// Shared memory of a block: that of decoding, the logits of its part of the head, float [8][most columns], and the
// products of a step. An argument of the kernel beside the others: its blocks need not divide for it.
struct PersistentShared {
  DecodeShared decode;
  size_t logits, products, flag, bytes;
  int logits_stride, products_of_step;

  PersistentShared(const DecodeStep& step, int64_t columns, int blocks)
      : decode(WeightStream<kGroups>::kBytes, step.hidden, step.intermediate / step.heads, step.cluster) {
    logits = decode.bytes;
    logits_stride = static_cast<int>(tiles_of(columns) / blocks + 1) * kTileColumns;
    if (logits_stride < blocks) logits_stride = blocks;  // where a byte per block stands later on
    products_of_step = step.layers * kProductsOfLayer + HeadShare(columns, 0, blocks).products;
    products = (logits + size_t{kStreamRows} * logits_stride * sizeof(float) + 127) / 128 * 128;
    flag = products + products_of_step * sizeof(Product);
    bytes = flag + 128;
  }
};

// Until all sequences have ended, one after another at worst.
__host__ __device__ __forceinline__ int most_steps(const PersistentDecode& args) {
  return static_cast<int>(args.search.max_steps * args.search.sequences);
}

// Product `number` of a step, as this block has it.
template <class W>
__device__ __forceinline__ Product product_of_step(const PersistentDecode& args, int number,
                                                   const BlockPosition& position, const HeadShare& head) {
  const int i = number - args.decode.layers * kProductsOfLayer;
  if (i < 0) return Products<W>::of_layer(args.decode, number, position);
  return Products<W>::some_tiles(args.head, args.head_bias, head.first + head.tiles * i / head.products,
                                 head.first + head.tiles * (i + 1) / head.products);
}

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
template <class Decoding>
class PersistentBlock {
 public:
  __device__ __forceinline__ PersistentBlock(const PersistentDecode& args, const PersistentShared& layout,
                                             unsigned char* shared, const HeadShare& head, Decoding& decoding)
      : args_(args),
        layout_(layout),
        products_(reinterpret_cast<const Product*>(shared + layout_.products)),
        logits_(reinterpret_cast<float*>(shared + layout_.logits)),
        head_(head),
        decode_(decoding),
        barrier_(args.barrier, reinterpret_cast<int*>(shared + layout_.flag)),
        known_(args.workspace, args.decode.rows, gridDim.x, args.choices) {}

  __device__ __forceinline__ void run() {
    cluster_sync();  // the others have begun: their shared memory may be written
    wait_for_previous_kernel();
    if (args_.placement && threadIdx.x == 0) args_.placement[blockIdx.x] = multiprocessor();
    const uint32_t sequences = *args_.search.queued;
#pragma unroll 1
    for (int step = 0; step < most_steps(args_); ++step) {
      if (!decode() || !choose(step) || *args_.search.num_ended == sequences) break;
    }
  }

 private:
  // All products of a step, from the embeddings of its tokens to the logits.
  __device__ __forceinline__ bool decode() {
    const DecodeStep& decode = args_.decode;
#pragma unroll 1
    for (int number = -1; number < layout_.products_of_step; ++number) {
      const int layer_products = decode.layers * kProductsOfLayer;
      const int phase = number < 0 ? kEmbed : number < layer_products ? number % kProductsOfLayer : kHead;
      const DecodeLayer& layer = decode.layer[phase == kEmbed || phase == kHead ? 0 : number / kProductsOfLayer];
      const void* gamma = phase == kEmbed ? decode.gamma : phase == kOut ? layer.gamma1 : layer.gamma2;
      const void* beta = phase == kEmbed ? decode.beta : phase == kOut ? layer.beta1 : layer.beta2;
      const auto norm = decode_.load_norm(gamma, beta);
      if (phase == kEmbed) {
        decode_.embed();
      } else {
        const Product product = products_[number];
        typename Decoding::KeyValue first{};
        if (phase == kQkv) first = decode_.load_first_key(layer);
        decode_.multiply(product, phase);
        if (phase == kQkv) decode_.attend(product, layer, first);
        if (phase == kFc1) decode_.activate(product);
        if (phase == kHead) keep_logits(product);
        if (phase != kOut && phase != kFc2) continue;
        float* partials = decode.partials + (phase == kOut ? 0 : int64_t{decode.heads} * decode.rows * decode.hidden);
        decode_.store_partial(product, partials);
        if (!barrier_.wait()) return false;
        decode_.add_partials(partials);
      }
      decode_.normalize(gamma, beta, norm);
    }
    return true;
  }

  // Every block the best of its part of the vocabulary, then the first block the best of all and the next step's rows.
  __device__ __forceinline__ bool choose(int step) {
    const int warp = threadIdx.x / kWarpSize, columns = head_.tiles * kTileColumns;
    const int rows = args_.decode.rows, first = head_.first * kTileColumns;
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

  // Some of this block's logits, with the bias: float [8][columns].
  __device__ __forceinline__ void keep_logits(const Product& product) {
    const int columns = product.count * kTileColumns, at = (product.first - head_.first) * kTileColumns;
#pragma unroll 1
    for (int row = 0; row < args_.decode.rows; ++row)
      for (int column = threadIdx.x; column < columns; column += kStreamThreads) {
        const bool exists = product.column(column) < product.columns;
        logits_[row * layout_.logits_stride + at + column] = exists ? decode_.element(product, row, column) : -INFINITY;
      }
    __syncthreads();  // before the next sums, and before the logits are read
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
  const PersistentShared& layout_;
  const Product* products_;
  float* logits_;
  const HeadShare head_;
  Decoding& decode_;
  GridBarrier barrier_;
  const PartChoices known_;
};

static_assert(sizeof(PersistentDecode) + sizeof(PersistentShared) <= 4096, "arguments of a kernel");

template <class T, class W>
__global__ void __launch_bounds__(kStreamThreads, 1)
    persistent_decode_kernel(const __grid_constant__ PersistentDecode args,
                             const __grid_constant__ PersistentShared layout) {
  GITFAST_SHARED(unsigned char, shared);
  using Stream = WeightStream<kGroups>;
  using Decoding = DecodeBlock<T, W, Stream>;
  const HeadShare head(args.head.columns, blockIdx.x, gridDim.x);
  auto* products = reinterpret_cast<Product*>(shared + layout.products);
  for (int i = threadIdx.x; i < layout.products_of_step; i += kStreamThreads)
    products[i] = product_of_step<W>(args, i, position_of(args.decode), head);
  __syncthreads();
  Stream stream(reinterpret_cast<WeightChunk*>(shared), products, layout.products_of_step,
                most_steps(args) * layout.products_of_step);
  Decoding decoding(args.decode, layout.decode, shared, stream);
  PersistentBlock<Decoding>(args, layout, shared, head, decoding).run();
  stream.drain();
  cluster_sync();  // nobody writes to the shared memory of a block that has left
}

int blocks_of(const PersistentDecode& args) { return args.decode.heads * args.decode.cluster; }

PersistentShared layout_of(const PersistentDecode& args) {
  return PersistentShared(args.decode, args.head.columns, blocks_of(args));
}

Launch launch_of(const PersistentDecode& args) {
  Launch launch{"persistent_decode_kernel", dim3(static_cast<unsigned>(blocks_of(args))), dim3(kStreamThreads),
                layout_of(args).bytes, nullptr};
  launch.cluster = static_cast<unsigned>(args.decode.cluster);
  launch.cooperative = true;
  return launch;
}

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
  const int shared = most_shared_bytes();
  int clusters = 0;
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
                  args, layout_of(args));
  });
}

}  // namespace gitfast::cuda
