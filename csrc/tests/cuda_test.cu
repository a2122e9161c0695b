// The CUDA kernels on a device against float64, without Python: quick to run under compute-sanitizer.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/activation.h"
#include "cuda/attention.h"
#include "cuda/embed.h"
#include "cuda/norm.h"
#include "tests/cuda_test.cuh"
#include "tests/cuda_test_linear.cuh"
#include "tests/cuda_test_persistent.cuh"
#include "tests/cuda_test_search.cuh"
#include "tests/tile_product.h"

namespace gitfast::cuda {
namespace {

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
      worst = worse(worst, error);
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
    worst = worse(worst, error);
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
      worst = worse(worst, error);
    }
  }
  return report("embed_layer_norm", dtype, rows, width, 0, worst);
}

// Rows of two images, each with as many text tokens as its number; row r's tokens have entries of their own.
template <class T>
bool test_attention(DType dtype, double rounding, int width, int prefix, int splits) {
  constexpr int kHeads = 2, kImages = 2, kRows = 5, kFirstRows = 3, kMaxText = kRows;
  const std::vector<int32_t> tiles{0, kFirstRows, 0, kFirstRows, kRows - kFirstRows, 1};
  std::vector<int32_t> kv_index, text_len;
  for (int i = 0; i < kRows * kMaxText; ++i) kv_index.push_back(kRows * kMaxText - 1 - i);
  for (int r = 0; r < kRows; ++r) text_len.push_back(r);
  const size_t per_row = size_t{kHeads} * width, prefix_size = per_row * kImages * prefix;
  const auto q = normal<T>(kRows * per_row, 1), k = normal<T>(prefix_size, 2), v = normal<T>(prefix_size, 3);
  const auto k_text = normal<T>(kv_index.size() * per_row, 4), v_text = normal<T>(kv_index.size() * per_row, 5);
  const DeviceArray<int32_t> dtiles(tiles), dkv_index(kv_index), dtext_len(text_len);
  const DeviceArray<T> dq(q), dk(k), dv(v), dk_text(k_text), dv_text(v_text), out(std::vector<T>(q.size(), T(NAN)));
  PrefixAttention args;
  args.dtype = dtype;
  args.rows = kRows;
  args.tiles = args.images = kImages;
  args.heads = kHeads;
  args.head_dim = width;
  args.prefix_len = prefix;
  args.max_text = kMaxText;
  args.kv_capacity = static_cast<int64_t>(kv_index.size());
  args.q = dq.data();
  args.tile_list = dtiles.data();
  args.k_prefix = dk.data();
  args.v_prefix = dv.data();
  args.k_text = dk_text.data();
  args.v_text = dv_text.data();
  args.kv_index = dkv_index.data();
  args.text_len = dtext_len.data();
  args.out = out.data();
  args.q_stride = args.out_stride = static_cast<int64_t>(per_row);
  args.scale = 0.2f;
  args.splits = splits;
  const DeviceArray<float> workspace(std::vector<float>(workspace_bytes(args) / sizeof(float)));
  args.workspace = workspace.data();
  prefix_attention(args, nullptr);
  const std::vector<T> result = out.host();
  double worst = 0;
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < kHeads; ++h) {
      const int image = r < kFirstRows ? 0 : 1, keys = prefix + text_len[r];
      // Where element d of key i lies, and whether it is text.
      const auto at = [&](int i, int d) {
        const size_t entry = i < prefix ? 0 : kv_index[r * kMaxText + i - prefix];
        return i < prefix ? ((size_t{1} * image * kHeads + h) * prefix + i) * width + d
                          : entry * per_row + h * width + d;
      };
      double total = 0;
      std::vector<double> sums(width);
      for (int i = 0; i < keys; ++i) {
        double score = 0;
        for (int d = 0; d < width; ++d)
          score += double{value(q[r * per_row + h * width + d])} * value(i < prefix ? k[at(i, d)] : k_text[at(i, d)]);
        const double weight = std::exp(score * args.scale);
        total += weight;
        for (int d = 0; d < width; ++d) sums[d] += weight * value(i < prefix ? v[at(i, d)] : v_text[at(i, d)]);
      }
      for (int d = 0; d < width; ++d) {
        const double truth = keys > 0 ? sums[d] / total : 0;
        const double got = value(result[r * per_row + h * width + d]);
        const double error = std::fabs(got - truth) / (rounding * (std::fabs(truth) + 5) + 1e-5);
        worst = worse(worst, error);
      }
    }
  return report("prefix_attention", dtype, width, prefix, splits, worst);
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
      worst = worse(worst, error);
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
  right &= test_packed_weights();
  for (const int width : {16, 64, 128})
    for (const int prefix : {0, 5, 200})
      for (const int splits : {1, 3}) {
        right &= test_attention<float>(DType::f32, 1.0 / (1 << 21), width, prefix, splits);
        right &= test_attention<__half>(DType::f16, 1.0 / (1 << 11), width, prefix, splits);
        right &= test_attention<__nv_bfloat16>(DType::bf16, 1.0 / (1 << 8), width, prefix, splits);
      }
  constexpr int kShapes[][3] = {{1, 8, 8}, {32, 16, 32}, {33, 24, 104}, {70, 40, 200}};
  for (const auto& [M, N, K] : kShapes) {
    right &= test_tile_product<__half>(DType::f16, M, N, K);
    right &= test_tile_product<__nv_bfloat16>(DType::bf16, M, N, K);
  }
  right &= test_search();
  right &= test_persistent();
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
