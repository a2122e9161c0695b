// Linear layers and the choice of tokens on a device, against float64.
#pragma once

#include <algorithm>
#include <cstring>

#include "cuda/linear.h"
#include "cuda/norm.h"
#include "cuda/select.h"
#include "tests/cuda_test.cuh"

namespace gitfast::cuda {

// A weight (columns, depth) in the layout of TiledWeight, and its columns rounded up with zeros.
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

inline std::vector<int8_t> bytes(size_t n, unsigned seed = 7) {
  std::mt19937 random(seed);
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
TiledWeight weight_of(DType dtype, const DeviceArray<W>& data, const DeviceArray<float>& scales, int columns,
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
    worst = worse(worst, error);
  }
  return report("linear", weight_dtype, rows, columns, depth, worst);
}

// One kernel beside two: the same to the bit.
inline bool test_norm_linear(int rows, int columns, int depth) {
  using T = __half;
  const size_t n = size_t{1} * rows * depth;
  const DeviceArray<T> x(normal<T>(n, 1)), gamma(normal<T>(depth, 2)), beta(normal<T>(depth, 3));
  const DeviceArray<T> weight(packed(normal<T>(size_t{1} * columns * depth, 4), columns, depth));
  const std::vector<T> unwritten(size_t{1} * rows * columns, T(NAN));
  const DeviceArray<T> normalised(std::vector<T>(n, T(NAN))), expected_rows(std::vector<T>(n, T(NAN)));
  const DeviceArray<T> out(unwritten), expected(unwritten);
  NormLinear args;
  args.dtype = DType::f16;
  args.rows = rows;
  args.weight = {DType::f16, columns, depth, weight.data(), nullptr};
  args.x = x.data();
  args.x_stride = args.normalised_stride = depth;
  args.out = out.data();
  args.out_stride = columns;
  args.gamma = gamma.data();
  args.beta = beta.data();
  args.normalised = normalised.data();
  args.overlap = true;
  norm_linear(args, nullptr);
  AddLayerNorm norm;
  norm.dtype = DType::f16;
  norm.rows = rows;
  norm.width = norm.x_stride = norm.out_stride = depth;
  norm.x = x.data();
  norm.gamma = gamma.data();
  norm.beta = beta.data();
  norm.out = expected_rows.data();
  norm.overlap = true;
  add_layer_norm(norm, nullptr);
  Linear product = args;
  product.x = expected_rows.data();
  product.out = expected.data();
  linear(product, nullptr);
  const auto differ = [](const std::vector<T>& a, const std::vector<T>& b) {
    return memcmp(a.data(), b.data(), a.size() * sizeof(T)) != 0 || !std::isfinite(value(a[0]));
  };
  const bool wrong = differ(normalised.host(), expected_rows.host()) || differ(out.host(), expected.host());
  return report("norm_linear", DType::f16, rows, columns, depth, wrong ? INFINITY : 0);
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
      worst = worse(worst, error);
      if (error < INFINITY) row[token] = -INFINITY;
    }
  }
  return report("head_select", weight_dtype, rows, columns, choices, worst);
}

inline bool test_packed_weights() {
  bool right = true;
  constexpr int kLinear[][3] = {{1, 8, 64}, {5, 13, 192}, {17, 24, 576}, {3, 8201, 64}};
  for (const auto& [rows, columns, depth] : kLinear)
    for (const bool overlap : {false, true}) {
      const size_t n = size_t{1} * columns * depth;
      right &= test_linear(DType::f16, normal<__half>(n, 3), rows, columns, depth, overlap);
      right &= test_linear(DType::i8, bytes(n), rows, columns, depth, overlap);
    }
  constexpr int kNorm[][3] = {{1, 24, 768}, {4, 13, 1024}, {3, 24, 96}};
  for (const auto& [rows, columns, depth] : kNorm) right &= test_norm_linear(rows, columns, depth);
  constexpr int kSelect[][3] = {{1, 5, 5}, {17, 300, 10}, {2, 4200, 64}};
  for (const auto& [rows, columns, choices] : kSelect) {
    right &= test_select(DType::f16, normal<__half>(size_t{64} * columns, 3), rows, columns, 64, choices);
    right &= test_select(DType::i8, bytes(size_t{64} * columns), rows, columns, 64, choices);
  }
  return right;
}

}  // namespace gitfast::cuda
