// Checks of a decode step: the widths, rows and clusters that the persistent kernel takes.
#include "cuda/decode.cuh"
#include "cuda/decode.h"

namespace gitfast::cuda {
namespace {

void check_product(const char* name, const TiledWeight& weight, const DecodeStep& args, int64_t columns,
                   int64_t depth) {
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

void check_decode_step(const DecodeStep& args) {
  const DType weights = args.layer[0].qkv.dtype;
  if (args.dtype == DType::f16 && weights != DType::f16)
    throw Error(std::string("qkv: expected float16, as the rows, got ") + dtype_name(weights));
  check_range("rows", args.rows, 1, kMaxDecodeRows);
  check_range("layers", args.layers, 1, kMaxDecodeLayers);
  check_range("cluster", args.cluster, 1, kMaxCluster);
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
    for (const void* pointer : {layer.gamma1, layer.beta1, layer.gamma2, layer.beta2})
      if (!aligned(pointer, 0, 16)) throw Error("gamma, beta: expected data at multiples of 16 bytes");
  }
  if (!aligned(args.partials, 0, 16)) throw Error("partials: expected data at a multiple of 16 bytes");
  for (const void* pointer : {args.words, args.positions, args.gamma, args.beta})
    if (!aligned(pointer, 0, 16)) throw Error("words, positions, gamma, beta: expected data at multiples of 16 bytes");
}

int64_t decode_workspace(int rows, int heads, int hidden) { return int64_t{2} * heads * rows * hidden; }

}  // namespace gitfast::cuda
