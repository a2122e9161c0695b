// Bias and activation: kernel and launch.
#include "cuda/activation.cuh"
#include "cuda/activation.h"
#include "cuda/platform.h"
#include "cuda/rows.cuh"

namespace gitfast::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kMaxWidth = int64_t{65535} * kMaxThreads;  // of a grid's second dimension

// A thread has one chunk of N elements: chunk blockIdx.y * blockDim.x + threadIdx.x of row blockIdx.x.
template <class T, int N, Activation kActivation>
__global__ void bias_activation_kernel(BiasActivation args) {
  using Chunk = Vec<T, N>;
  const int64_t row = blockIdx.x;
  const int chunk = blockIdx.y * blockDim.x + threadIdx.x;
  if (chunk >= static_cast<int>(args.width) / N) return;
  const Chunk x = load_vec(reinterpret_cast<const Chunk*>(static_cast<const T*>(args.x) + row * args.x_stride) + chunk);
  float values[N];
  for (int j = 0; j < N; ++j) values[j] = to_float(x.at[j]);
  if (args.bias) {
    const Chunk bias = load_vec(static_cast<const Chunk*>(args.bias) + chunk);
    for (int j = 0; j < N; ++j) values[j] += to_float(bias.at[j]);
  }
  Chunk out;
  for (int j = 0; j < N; ++j) out.at[j] = from_float<T>(activate(kActivation, values[j]));
  store_vec(reinterpret_cast<Chunk*>(static_cast<T*>(args.out) + row * args.out_stride) + chunk, out);
}

template <class T, int N>
void launch(const BiasActivation& args, cudaStream_t stream) {
  // As few blocks as hold a row, and all of one size.
  const int64_t chunks = args.width / N, blocks = (chunks + kMaxThreads - 1) / kMaxThreads;
  const int64_t warps = (chunks + blocks * kWarpSize - 1) / (blocks * kWarpSize);
  const Launch launch{"bias_activation_kernel", dim3(args.rows, blocks), dim3(warps * kWarpSize), 0, stream};
  if (args.activation == Activation::gelu)
    return launch_kernel(launch, bias_activation_kernel<T, N, Activation::gelu>, args);
  if (args.activation == Activation::quick_gelu)
    return launch_kernel(launch, bias_activation_kernel<T, N, Activation::quick_gelu>, args);
  launch_kernel(launch, bias_activation_kernel<T, N, Activation::none>, args);
}

template <class T>
void dispatch(const BiasActivation& args, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  const int64_t size = sizeof(T);
  const bool vectors = args.width % kVector == 0 && aligned(args.x, args.x_stride * size, 16) &&
                       aligned(args.out, args.out_stride * size, 16) && aligned(args.bias, 0, 16);
  vectors ? launch<T, kVector>(args, stream) : launch<T, 1>(args, stream);
}

}  // namespace

void bias_activation(const BiasActivation& args, CUstream_st* stream) {
  for_rows(args, kMaxWidth, [&](auto type) { dispatch<decltype(type)>(args, stream); });
}

}  // namespace gitfast::cuda
