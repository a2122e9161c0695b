#include "cuda/decode.cuh"
#include "cuda/decode.h"

namespace gitfast::cuda {
namespace {

// Small enough for two blocks on a multiprocessor: the next kernel's weights are on their way while this one works.
constexpr int kSlots = 10;
constexpr int kBlocksAtOnce = 2;

template <class W>
struct LayerProgram {
  const Decode* args;
  Place place;
  int layer;
  bool attention;

  __device__ Product operator()(int i) const {
    if (attention) return i == 0 ? Products<W>::qkv(*args, layer, place) : Products<W>::out(*args, layer, place);
    return i == 0 ? Products<W>::fc1(*args, layer, place) : Products<W>::fc2(*args, layer, place);
  }
};

// Half a layer; grid: a cluster per head. `from`, `to`: partials (heads, rows, D).
template <class T, class W, bool kAttention>
__global__ void __launch_bounds__(kStreamThreads, kBlocksAtOnce)
    layer_kernel(const __grid_constant__ Decode args, int layer, const float* from, float* to) {
  GITFAST_SHARED(unsigned char, shared);
  using Stream = WeightStream<LayerProgram<W>, kSlots>;
  let_next_kernel_start();
  const LayerProgram<W> program{&args, place_of(args), layer, kAttention};
  Stream stream(reinterpret_cast<WeightChunk*>(shared), program, 2);
  DecodeBlock<T, W, kSlots, Stream> block(args, shared, stream);
  cluster_sync();  // the others have begun: their shared memory may be written
  wait_for_previous_kernel();
  if constexpr (kAttention) {
    if (layer == 0)
      block.embed();
    else
      block.add_partials(from, args.layer[layer - 1].gamma2, args.layer[layer - 1].beta2);
    block.attend(layer, to);
  } else {
    block.add_partials(from, args.layer[layer].gamma1, args.layer[layer].beta1);
    block.mlp(layer, to);
  }
}

// The rows behind the last layer; grid: one cluster.
template <class T, class W>
__global__ void __launch_bounds__(kStreamThreads)
    hidden_kernel(const __grid_constant__ Decode args, const float* from, T* hidden) {
  GITFAST_SHARED(unsigned char, shared);
  let_next_kernel_start();
  int no_stream = 0;
  DecodeBlock<T, W, 0, int> block(args, shared, no_stream);
  cluster_sync();
  wait_for_previous_kernel();
  block.add_partials(from, args.layer[args.layers - 1].gamma2, args.layer[args.layers - 1].beta2);
  if (place_of(args).rank > 0) return;
  for (int i = threadIdx.x; i < args.rows * args.hidden; i += blockDim.x)
    hidden[i] = block.rows()[i / args.hidden * block.layout().row_stride + i % args.hidden];
}

template <class T, class W>
void launch(const Decode& args, void* hidden, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(args.heads * args.cluster), cluster = static_cast<unsigned>(args.cluster);
  const int inner = args.intermediate / args.heads;
  const size_t shared = DecodeShared(kSlots, args.hidden, inner, args.cluster).bytes;
  Launch half{"layer_kernel", dim3(blocks), dim3(kStreamThreads), shared, stream};
  half.overlap = true;
  half.cluster = cluster;
  float* partials[2] = {args.partials, args.partials + int64_t{args.heads} * args.rows * args.hidden};
  for (int layer = 0; layer < args.layers; ++layer) {
    launch_kernel(half, layer_kernel<T, W, true>, args, layer, partials[1], partials[0]);
    launch_kernel(half, layer_kernel<T, W, false>, args, layer, partials[0], partials[1]);
  }
  Launch last = half;
  last.name = "hidden_kernel";
  last.grid = dim3(cluster);
  last.shared_bytes = DecodeShared(0, args.hidden, inner, args.cluster).bytes;
  launch_kernel(last, hidden_kernel<T, W>, args, partials[1], static_cast<T*>(hidden));
}

void check_product(const char* name, const PackedWeight& weight, const Decode& args, int64_t columns, int64_t depth) {
  check_weight(weight, args.dtype);
  if (weight.dtype != args.layer[0].qkv.dtype)
    throw Error(std::string(name) + ": expected " + dtype_name(args.layer[0].qkv.dtype) + ", as the first, got " +
                dtype_name(weight.dtype));
  if (weight.columns != columns || weight.depth != depth)
    throw Error(std::string(name) + ": expected a weight of " + std::to_string(columns) + " x " +
                std::to_string(depth) + ", got " + std::to_string(weight.columns) + " x " +
                std::to_string(weight.depth));
}

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw Error(std::string(name) + ": expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                std::to_string(value));
}

}  // namespace

void check_decode(const Decode& args) {
  const DType weights = args.layer[0].qkv.dtype;
  if (args.dtype == DType::f16 && weights != DType::f16)
    throw Error(std::string("qkv: expected float16, as the rows, got ") + dtype_name(weights));
  check_range("rows", args.rows, 1, kDecodeRows);
  check_range("layers", args.layers, 1, kDecodeLayers);
  check_range("cluster", args.cluster, 1, 8);
  check_range("heads", args.heads, 1, 1024);
  const int64_t hidden = args.hidden, tiles = hidden / kTileColumns;
  if (hidden != int64_t{args.heads} * kHeadDim)
    throw Error("hidden: expected " + std::to_string(args.heads) + " heads of 64, got " + std::to_string(hidden));
  const auto step = static_cast<int64_t>(64 / dtype_size(args.layer[0].qkv.dtype));
  if (args.intermediate < 1 || args.intermediate % (args.heads * step))
    throw Error("intermediate: expected a multiple of " + std::to_string(args.heads * step) + ", got " +
                std::to_string(args.intermediate));
  const auto most = int64_t{kMostTiles} * args.cluster;
  check_range("columns of a head / 8", 3 * kHeadDim / kTileColumns, 1, most);
  check_range("hidden / 8", tiles, 1, most);
  check_range("intermediate / heads / 8", args.intermediate / args.heads / kTileColumns, 1, most);
  for (int i = 0; i < args.layers; ++i) {
    const DecodeLayer& layer = args.layer[i];
    check_product("qkv", layer.qkv, args, 3 * hidden, hidden);
    check_product("out", layer.out, args, hidden, hidden);
    check_product("fc1", layer.fc1, args, args.intermediate, hidden);
    check_product("fc2", layer.fc2, args, hidden, args.intermediate);
    for (const void* pointer : {layer.k_prefix, layer.v_prefix, static_cast<const void*>(layer.k_text),
                                static_cast<const void*>(layer.v_text)})
      if (!aligned(pointer, 0, 16)) throw Error("keys, values: expected data at multiples of 16 bytes");
  }
  if (!aligned(args.partials, 0, 16)) throw Error("partials: expected data at a multiple of 16 bytes");
}

int64_t decode_workspace(int rows, int heads, int hidden) { return int64_t{2} * heads * rows * hidden; }

bool can_decode([[maybe_unused]] int device, [[maybe_unused]] int hidden, [[maybe_unused]] int intermediate,
                [[maybe_unused]] int heads, [[maybe_unused]] int cluster) {
#ifdef __CUDACC__
  int major = 0, shared = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return major >= 9 && DecodeShared(kSlots, hidden, intermediate / heads, cluster).bytes <= static_cast<size_t>(shared);
#else
  return true;
#endif
}

void decode_step(const Decode& args, void* hidden, CUstream_st* stream) {
  check_decode(args);
  const DeviceScope device(args.device);
  with_decode_types(args, [&](auto types) {
    launch<typename decltype(types)::Input, typename decltype(types)::Weight>(args, hidden, stream);
  });
}

}  // namespace gitfast::cuda
