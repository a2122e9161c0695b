// The CUDA kernels on a device against float64, without Python: quick to run under compute-sanitizer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/activation.h"
#include "cuda/embed.h"
#include "cuda/linear.h"
#include "cuda/norm.h"
#include "cuda/platform.h"
#include "cuda/select.h"
#include "tests/tile_product.h"

namespace gitfast::cuda {
namespace {

// Memory of the device of exactly this many elements.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host) : size_(host.size()) {
    check(cudaMalloc(&data_, size_ * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> host() const {
    std::vector<T> copy(size_);
    check(cudaMemcpy(copy.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return copy;
  }

 private:
  size_t size_;
  void* data_ = nullptr;
};

float value(float x) { return x; }
float value(__half x) { return __half2float(x); }
float value(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
std::vector<T> normal(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<T> values(n);
  for (T& v : values) v = T(distribution(random));
  return values;
}

bool report(const char* name, DType dtype, int a, int b, int c, double error) {
  const bool right = error <= 1;  // and not NaN
  std::printf("%-16s %-8s %4d %4d %4d  %.3f of the tolerance%s\n", name, dtype_name(dtype), a, b, c, error,
              right ? "" : ": WRONG");
  return right;
}

template <class T>
bool test_norm(DType dtype, double rounding, int rows, int width) {
  const size_t n = static_cast<size_t>(rows) * width;
  const auto x = normal<T>(n, 1), residual = normal<T>(n, 2);
  const auto bias = normal<T>(width, 3), gamma = normal<T>(width, 4), beta = normal<T>(width, 5);
  const DeviceArray<T> dx(x), dresidual(residual), dbias(bias), dgamma(gamma), dbeta(beta);
  const DeviceArray<T> out(std::vector<T>(n, T(NAN)));
  AddLayerNorm args;
  args.dtype = dtype;
  args.rows = rows;
  args.width = args.x_stride = args.residual_stride = args.out_stride = width;
  args.x = dx.data();
  args.bias = dbias.data();
  args.residual = dresidual.data();
  args.gamma = dgamma.data();
  args.beta = dbeta.data();
  args.out = out.data();
  add_layer_norm(args, nullptr);
  const std::vector<T> result = out.host();
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    std::vector<double> row(width);
    double mean = 0, variance = 0;
    for (int i = 0; i < width; ++i) {
      const size_t at = static_cast<size_t>(r) * width + i;
      row[i] = double{value(x[at])} + value(residual[at]) + value(bias[i]);
      mean += row[i] / width;
    }
    for (const double v : row) variance += (v - mean) * (v - mean) / width;
    for (int i = 0; i < width; ++i) {
      const double truth = (row[i] - mean) / std::sqrt(variance + args.eps) * value(gamma[i]) + value(beta[i]);
      const double got = value(result[static_cast<size_t>(r) * width + i]);
      const double error = std::fabs(got - truth) / (rounding * std::fabs(truth) + 2e-5);
      worst = error <= worst ? worst : error;  // NaN stays
    }
  }
  return report("add_layer_norm", dtype, rows, width, 0, worst);
}

template <class T>
bool test_activation(DType dtype, double rounding, Activation activation, int rows, int width) {
  const size_t n = static_cast<size_t>(rows) * width;
  const auto x = normal<T>(n, 1), bias = normal<T>(width, 2);
  const DeviceArray<T> dx(x), dbias(bias), out(std::vector<T>(n, T(NAN)));
  BiasActivation args;
  args.dtype = dtype;
  args.activation = activation;
  args.rows = rows;
  args.width = args.x_stride = args.out_stride = width;
  args.x = dx.data();
  args.bias = dbias.data();
  args.out = out.data();
  bias_activation(args, nullptr);
  const std::vector<T> result = out.host();
  double worst = 0;
  for (size_t i = 0; i < n; ++i) {
    const double sum = double{value(x[i])} + value(bias[i % width]);
    const double gelu = sum / 2 * std::erfc(-sum / std::sqrt(2.0)), quick_gelu = sum / (1 + std::exp(-1.702 * sum));
    const double truth = activation == Activation::gelu ? gelu : quick_gelu;
    const double error = std::fabs(value(result[i]) - truth) / (rounding * std::fabs(truth) + 1e-5);
    worst = error <= worst ? worst : error;
  }
  return report(activation == Activation::gelu ? "gelu" : "quick_gelu", dtype, rows, width, 0, worst);
}

template <class T>
bool test_embed(DType dtype, double rounding, int width) {
  const std::vector<int32_t> ids{6, 0, 3, 7, -1}, position_ids{2, 1, 0, 0, 0};  // the last two lie outside
  const int rows = static_cast<int>(ids.size()), num_words = 7, num_positions = 3;
  const auto words = normal<T>(size_t{1} * num_words * width, 1), positions = normal<T>(size_t{3} * width, 2);
  const auto gamma = normal<T>(width, 3), beta = normal<T>(width, 4);
  const DeviceArray<int32_t> dids(ids), dposition_ids(position_ids);
  const DeviceArray<T> dwords(words), dpositions(positions), dgamma(gamma), dbeta(beta);
  const DeviceArray<T> out(std::vector<T>(size_t{1} * rows * width, T(0)));
  EmbedLayerNorm args;
  args.dtype = dtype;
  args.rows = rows;
  args.width = args.words_stride = args.positions_stride = args.out_stride = width;
  args.num_words = num_words;
  args.num_positions = num_positions;
  args.ids = dids.data();
  args.position_ids = dposition_ids.data();
  args.words = dwords.data();
  args.positions = dpositions.data();
  args.gamma = dgamma.data();
  args.beta = dbeta.data();
  args.out = out.data();
  embed_layer_norm(args, nullptr);
  const std::vector<T> result = out.host();
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    const bool exists = ids[r] >= 0 && ids[r] < num_words;
    const auto sum = [&](int i) {
      return double{value(words[ids[r] * width + i])} + value(positions[position_ids[r] * width + i]);
    };
    double mean = 0, variance = 0;
    for (int i = 0; exists && i < width; ++i) mean += sum(i) / width;
    for (int i = 0; exists && i < width; ++i) variance += (sum(i) - mean) * (sum(i) - mean) / width;
    for (int i = 0; i < width; ++i) {
      const double got = value(result[size_t{1} * r * width + i]);
      if (!exists) {
        worst = std::isnan(got) ? worst : INFINITY;
        continue;
      }
      const double truth = (sum(i) - mean) / std::sqrt(variance + args.eps) * value(gamma[i]) + value(beta[i]);
      const double error = std::fabs(got - truth) / (rounding * std::fabs(truth) + 2e-5);
      worst = error <= worst ? worst : error;
    }
  }
  return report("embed_layer_norm", dtype, rows, width, 0, worst);
}

// A weight (columns, depth) in the layout of PackedWeight, and its columns rounded up with zeros.
template <class W>
std::vector<W> packed(const std::vector<W>& weight, int columns, int depth) {
  const int step = 64 / static_cast<int>(sizeof(W)), padded = (columns + 7) / 8 * 8;
  std::vector<W> data(size_t{1} * padded * depth, W(0));
  for (int n = 0; n < columns; ++n)
    for (int k = 0; k < depth; ++k)
      data[((size_t{1} * (n / 8) * (depth / step) + k / step) * 8 + n % 8) * step + k % step] =
          weight[size_t{1} * n * depth + k];
  return data;
}

std::vector<int8_t> bytes(size_t n) {
  std::mt19937 random(7);
  std::vector<int8_t> values(n);
  for (int8_t& v : values) v = static_cast<int8_t>(random() % 255 - 127);
  return values;
}

// x (rows, depth) W^T, W (columns, depth), times the scales.
template <class T, class W>
std::vector<double> product(const std::vector<T>& x, const std::vector<W>& weight, const std::vector<float>& scales,
                            int rows, int columns, int depth) {
  std::vector<double> out(size_t{1} * rows * columns);
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) {
      double sum = 0;
      for (int k = 0; k < depth; ++k)
        sum += double{value(x[size_t{1} * r * depth + k])} * double(weight[size_t{1} * n * depth + k]);
      out[size_t{1} * r * columns + n] = sum * double{scales[n]};
    }
  return out;
}

template <class W>
PackedWeight weight_of(DType dtype, const DeviceArray<W>& data, const DeviceArray<float>& scales, int columns,
                       int depth) {
  return {dtype, columns, depth, data.data(), sizeof(W) == 1 ? scales.data() : nullptr};
}

template <class W>
bool test_linear(DType weight_dtype, const std::vector<W>& weight, int rows, int columns, int depth, bool overlap) {
  using T = __half;
  const auto x = normal<T>(size_t{1} * rows * depth, 1);
  const std::vector<float> scales(columns, sizeof(W) == 1 ? 0.01f : 1.0f);
  const DeviceArray<T> dx(x), out(std::vector<T>(size_t{1} * rows * columns, T(NAN)));
  const DeviceArray<W> dweight(packed(weight, columns, depth));
  const DeviceArray<float> dscales(scales);
  Linear args;
  args.dtype = DType::f16;
  args.rows = rows;
  args.weight = weight_of(weight_dtype, dweight, dscales, columns, depth);
  args.x = dx.data();
  args.x_stride = depth;
  args.out = out.data();
  args.out_stride = columns;
  args.overlap = overlap;
  linear(args, nullptr);
  linear(args, nullptr);
  const std::vector<T> result = out.host();
  const std::vector<double> truth = product(x, weight, scales, rows, columns, depth);
  double worst = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double error = std::fabs(value(result[i]) - truth[i]) / (std::fabs(truth[i]) / (1 << 11) + 1e-3);
    worst = error <= worst ? worst : error;
  }
  return report("linear", weight_dtype, rows, columns, depth, worst);
}

template <class W>
bool test_select(DType weight_dtype, const std::vector<W>& weight, int rows, int columns, int depth, int choices) {
  using T = __half;
  const auto x = normal<T>(size_t{1} * rows * depth, 1);
  const std::vector<float> scales(columns, sizeof(W) == 1 ? 0.01f : 1.0f);
  const DeviceArray<T> dx(x);
  const DeviceArray<W> dweight(packed(weight, columns, depth));
  const DeviceArray<float> dscales(scales), log_probs(std::vector<float>(size_t{1} * rows * choices, NAN));
  const DeviceArray<int32_t> tokens(std::vector<int32_t>(size_t{1} * rows * choices, -9)), step({3});
  const DeviceArray<int32_t> drawn(std::vector<int32_t>(rows, -9));
  const DeviceArray<int64_t> keys(std::vector<int64_t>(rows, 12345));
  const DeviceArray<uint8_t> workspace(std::vector<uint8_t>(select_workspace(rows, columns, choices), 0xff));
  HeadSelect args;
  args.dtype = DType::f16;
  args.rows = rows;
  args.choices = choices;
  args.weight = weight_of(weight_dtype, dweight, dscales, columns, depth);
  args.x = dx.data();
  args.x_stride = depth;
  args.tokens = tokens.data();
  args.log_probs = log_probs.data();
  args.keys = keys.data();
  args.step = step.data();
  args.drawn = drawn.data();
  args.workspace = workspace.data();
  args.overlap = true;
  head_select(args, nullptr);
  const std::vector<int32_t> result = tokens.host(), by_chance = drawn.host();
  std::vector<double> logits = product(x, weight, scales, rows, columns, depth);
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    double* row = logits.data() + size_t{1} * r * columns;
    if (by_chance[r] < 0 || by_chance[r] >= columns) worst = INFINITY;
    for (int k = 0; k < choices; ++k) {
      const int token = result[size_t{1} * r * choices + k];
      const double best = *std::max_element(row, row + columns);
      const double error = token < 0 || token >= columns ? INFINITY : (best - row[token]) / 1e-3;
      worst = error <= worst ? worst : error;
      if (error < INFINITY) row[token] = -INFINITY;
    }
  }
  return report("head_select", weight_dtype, rows, columns, choices, worst);
}

template <class T>
bool test_tile_product(DType dtype, int M, int N, int K) {
  const auto a = normal<T>(size_t{1} * M * K, 1), b = normal<T>(size_t{1} * K * N, 2);
  const DeviceArray<T> da(a), db(b);
  const DeviceArray<float> out(std::vector<float>(size_t{1} * M * N, NAN));
  tile_product({dtype, M, N, K, da.data(), db.data(), out.data()}, nullptr);
  const std::vector<float> result = out.host();
  double worst = 0;
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      double truth = 0;
      for (int k = 0; k < K; ++k) truth += double{value(a[m * K + k])} * value(b[k * N + n]);
      const double error = std::fabs(result[m * N + n] - truth) / 1e-3;
      worst = error <= worst ? worst : error;
    }
  return report("tile_product", dtype, M, N, K, worst);
}

bool test_all() {
  bool right = true;
  for (const int width : {1, 24, 25, 520, 768, 1025, 2200, 4096}) {
    right &= test_norm<float>(DType::f32, 1.0 / (1 << 24), 3, width);
    right &= test_norm<__half>(DType::f16, 1.0 / (1 << 11), 3, width);
    right &= test_norm<__nv_bfloat16>(DType::bf16, 1.0 / (1 << 8), 3, width);
  }
  for (const int width : {1, 25, 768, 2056})
    for (const Activation activation : {Activation::gelu, Activation::quick_gelu}) {
      right &= test_activation<float>(DType::f32, 1.0 / (1 << 24), activation, 3, width);
      right &= test_activation<__half>(DType::f16, 1.0 / (1 << 11), activation, 3, width);
      right &= test_activation<__nv_bfloat16>(DType::bf16, 1.0 / (1 << 8), activation, 3, width);
    }
  for (const int width : {25, 768}) {
    right &= test_embed<float>(DType::f32, 1.0 / (1 << 24), width);
    right &= test_embed<__half>(DType::f16, 1.0 / (1 << 11), width);
    right &= test_embed<__nv_bfloat16>(DType::bf16, 1.0 / (1 << 8), width);
  }
  constexpr int kLinear[][3] = {{1, 8, 64}, {5, 13, 192}, {17, 24, 576}, {3, 8201, 64}};
  for (const auto& [rows, columns, depth] : kLinear)
    for (const bool overlap : {false, true}) {
      const size_t n = size_t{1} * columns * depth;
      right &= test_linear(DType::f16, normal<__half>(n, 3), rows, columns, depth, overlap);
      right &= test_linear(DType::i8, bytes(n), rows, columns, depth, overlap);
    }
  constexpr int kSelect[][3] = {{1, 5, 5}, {17, 300, 10}, {2, 4200, 64}};
  for (const auto& [rows, columns, choices] : kSelect) {
    right &= test_select(DType::f16, normal<__half>(size_t{64} * columns, 3), rows, columns, 64, choices);
    right &= test_select(DType::i8, bytes(size_t{64} * columns), rows, columns, 64, choices);
  }
  constexpr int kShapes[][3] = {{1, 8, 8}, {32, 16, 32}, {33, 24, 104}, {70, 40, 200}};
  for (const auto& [M, N, K] : kShapes) {
    right &= test_tile_product<__half>(DType::f16, M, N, K);
    right &= test_tile_product<__nv_bfloat16>(DType::bf16, M, N, K);
  }
  return right;
}

}  // namespace
}  // namespace gitfast::cuda

int main() {
  try {
    return gitfast::cuda::test_all() ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
