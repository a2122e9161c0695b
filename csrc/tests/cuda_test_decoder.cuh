// A small random decoder on a device, and what float64 makes of the tokens it is fed.
#pragma once

#include <algorithm>
#include <deque>
#include <type_traits>

#include "cuda/decode.h"
#include "tests/cuda_test_linear.cuh"

namespace gitfast::cuda {

// As in cuda/decode.h: H heads, D, F, B images, P prefix tokens. V tokens, which are no whole number of tiles.
constexpr int kHeads = 2, kWidth = kHeads * kDecodeHeadDim, kInner = 256, kLayers = 2;
constexpr int kImages = 2, kPrefix = 21, kVocabulary = 101, kMostPositions = 12;
constexpr float kEps = 1e-12f;

// The dtype of rows or weights of type T.
template <class T>
constexpr DType kDType = std::is_same_v<T, __half>   ? DType::f16
                         : std::is_same_v<T, int8_t> ? DType::i8
                                                     : DType::bf16;

template <class T>
double rounded(double x) {
  return value(T(static_cast<float>(x)));
}

// One unit in the last place of T at 1.
template <class T>
constexpr double kUnit = std::is_same_v<T, __half> ? 1.0 / (1 << 10) : 1.0 / (1 << 7);

// The largest error of what is rounded to T, of two roundings in all.
template <class T>
double distance(const std::vector<T>& got, const std::vector<double>& truth) {
  double worst = 0;
  for (size_t i = 0; i < truth.size(); ++i)
    worst = worse(worst, std::fabs(value(got[i]) - truth[i]) / (kUnit<T> * (1 + std::fabs(truth[i]))));
  return worst;
}

// Random rows of about the same deviation whatever their type; those of 8 bits have a factor each.
template <class W>
struct RandomRows {
  RandomRows(int rows, int width, float deviation, unsigned seed) : factors(rows, 1.0f) {
    const size_t n = size_t{1} * rows * width;
    if constexpr (sizeof(W) == 1) {
      values = bytes(n, seed);
      for (int i = 0; i < rows; ++i) factors[i] = deviation / 73 * (0.7f + (i + seed) % 5 * 0.2f);
    } else {
      values = normal<W>(n, seed, deviation);
    }
  }
  std::vector<W> values;
  std::vector<float> factors;
};

template <class T>
struct Vector {
  Vector(size_t n, unsigned seed, float deviation, float mean = 0)
      : host(normal<T>(n, seed, deviation, mean)), device(host) {}
  std::vector<T> host;
  DeviceArray<T> device;
};

// y = x W^T + bias
template <class T, class W>
struct Affine {
  Affine(int columns, int depth, unsigned seed)
      : columns(columns),
        depth(depth),
        weight(columns, depth, 1 / std::sqrt(static_cast<float>(depth)), seed),
        data(packed(weight.values, columns, depth)),
        scales(weight.factors),
        bias(columns, seed, 0.1f) {}
  TiledWeight on_device() const { return weight_of(kDType<W>, data, scales, columns, depth); }
  std::vector<double> operator()(std::vector<double> x) const {
    for (double& v : x) v = rounded<T>(v);
    const int rows = static_cast<int>(x.size()) / depth;
    std::vector<double> y = product(x, weight.values, weight.factors, rows, columns, depth);
    for (size_t i = 0; i < y.size(); ++i) y[i] += value(bias.host[i % columns]);
    return y;
  }

  int columns, depth;
  RandomRows<W> weight;
  DeviceArray<W> data;
  DeviceArray<float> scales;
  Vector<T> bias;
};

template <class T>
struct Norm {
  explicit Norm(unsigned seed) : gamma(kWidth, seed, 0.1f, 1), beta(kWidth, seed + 1, 0.1f) {}
  std::vector<double> operator()(std::vector<double> x) const {
    for (size_t row = 0; row < x.size(); row += kWidth) {
      double mean = 0, variance = 0;
      for (int i = 0; i < kWidth; ++i) mean += x[row + i] / kWidth;
      for (int i = 0; i < kWidth; ++i) variance += (x[row + i] - mean) * (x[row + i] - mean) / kWidth;
      for (int i = 0; i < kWidth; ++i)
        x[row + i] = (x[row + i] - mean) / std::sqrt(variance + kEps) * value(gamma.host[i]) + value(beta.host[i]);
    }
    return x;
  }
  Vector<T> gamma, beta;
};

// Keys or values: of the images (B, H, P, 64), with a factor per token beside weights of 8 bits, and of the text
// (S, H, 64). Text is random before it is stored.
template <class T, class W>
struct Stored {
  using P = std::conditional_t<sizeof(W) == 1, int8_t, T>;
  Stored(int entries, unsigned seed)
      : Stored(RandomRows<P>(kImages * kHeads * kPrefix, kDecodeHeadDim, 1, seed),
               normal<T>(size_t{1} * entries * kWidth, seed + 1)) {}
  Stored(const RandomRows<P>& image, const std::vector<T>& before)
      : prefix(image.values), factors(image.factors), text(before) {
    for (size_t i = 0; i < image.values.size(); ++i)
      prefix_truth.push_back(rounded<T>(static_cast<float>(image.values[i]) * image.factors[i / kDecodeHeadDim]));
    for (const T x : before) text_truth.push_back(value(x));
  }
  const float* scales() const { return sizeof(P) == 1 ? factors.data() : nullptr; }

  DeviceArray<P> prefix;
  DeviceArray<float> factors;
  DeviceArray<T> text;
  std::vector<double> prefix_truth, text_truth;
};

// The rows of a step, as in DecodeStep.
struct StepRows {
  int max_text = 0;
  std::vector<int32_t> ids, positions, image, kv_index, text_len;
};

// Attention of one head, 64 elements each: softmax(q k / 8) v.
inline void attend(const double* q, const std::vector<const double*>& keys, const std::vector<const double*>& values,
                   double* out) {
  double total = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    double score = 0;
    for (int d = 0; d < kDecodeHeadDim; ++d) score += q[d] * keys[i][d] / 8;
    const double weight = std::exp(score);
    total += weight;
    for (int d = 0; d < kDecodeHeadDim; ++d) out[d] += weight * values[i][d];
  }
  for (int d = 0; d < kDecodeHeadDim; ++d) out[d] /= total;
}

template <class T, class W>
struct RandomLayer {
  RandomLayer(int entries, unsigned seed)
      : qkv(3 * kWidth, kWidth, seed),
        out(kWidth, kWidth, seed + 1),
        fc1(kInner, kWidth, seed + 2),
        fc2(kWidth, kInner, seed + 3),
        norm1(seed + 4),
        norm2(seed + 6),
        keys(entries, seed + 8),
        values(entries, seed + 10) {}

  DecodeLayer on_device() const {
    DecodeLayer layer;
    layer.qkv = qkv.on_device(), layer.qkv_bias = qkv.bias.device.data();
    layer.out = out.on_device(), layer.out_bias = out.bias.device.data();
    layer.fc1 = fc1.on_device(), layer.fc1_bias = fc1.bias.device.data();
    layer.fc2 = fc2.on_device(), layer.fc2_bias = fc2.bias.device.data();
    layer.gamma1 = norm1.gamma.device.data(), layer.beta1 = norm1.beta.device.data();
    layer.gamma2 = norm2.gamma.device.data(), layer.beta2 = norm2.beta.device.data();
    layer.k_prefix = keys.prefix.data(), layer.k_scale = keys.scales(), layer.k_text = keys.text.data();
    layer.v_prefix = values.prefix.data(), layer.v_scale = values.scales(), layer.v_text = values.text.data();
    return layer;
  }

  // x (R, D); stores the rows' keys and values.
  std::vector<double> operator()(std::vector<double> x, const StepRows& rows) {
    const std::vector<double> y = out(mix(qkv(x), rows));
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    x = norm1(x);
    std::vector<double> inner = fc1(x);
    for (double& v : inner) v = v / 2 * std::erfc(-v / std::sqrt(2.0));
    const std::vector<double> z = fc2(inner);
    for (size_t i = 0; i < x.size(); ++i) x[i] += z[i];
    return norm2(x);
  }

  Affine<T, W> qkv, out, fc1, fc2;
  Norm<T> norm1, norm2;
  Stored<T, W> keys, values;

 private:
  std::vector<double> mix(std::vector<double> qkv, const StepRows& rows) {
    for (double& v : qkv) v = rounded<T>(v);
    const size_t R = rows.ids.size();
    std::vector<double> mixed(R * kWidth);
    for (size_t r = 0; r < R; ++r) {
      const int32_t* kv_index = &rows.kv_index[r * rows.max_text];
      const double* q = &qkv[r * 3 * kWidth];
      const size_t own = size_t{1} * kv_index[rows.text_len[r] - 1] * kWidth;
      std::copy_n(q + kWidth, kWidth, &keys.text_truth[own]);
      std::copy_n(q + 2 * kWidth, kWidth, &values.text_truth[own]);
      for (int h = 0; h < kHeads; ++h) {
        std::vector<const double*> k, v;
        for (int i = 0; i < kPrefix; ++i) {
          const size_t at = ((size_t{1} * rows.image[r] * kHeads + h) * kPrefix + i) * kDecodeHeadDim;
          k.push_back(&keys.prefix_truth[at]), v.push_back(&values.prefix_truth[at]);
        }
        for (int i = 0; i < rows.text_len[r]; ++i) {
          const size_t at = size_t{1} * kv_index[i] * kWidth + h * kDecodeHeadDim;
          k.push_back(&keys.text_truth[at]), v.push_back(&values.text_truth[at]);
        }
        attend(q + h * kDecodeHeadDim, k, v, &mixed[r * kWidth + h * kDecodeHeadDim]);
      }
    }
    return mixed;
  }
};

template <class T, class W>
struct RandomDecoder {
  explicit RandomDecoder(int entries, unsigned seed)
      : entries(entries),
        words(size_t{kVocabulary} * kWidth, seed, 1),
        positions(size_t{kMostPositions} * kWidth, seed + 1, 1),
        norm(seed + 2),
        head(kVocabulary, kWidth, seed + 4) {
    for (int i = 0; i < kLayers; ++i) layers.emplace_back(entries, seed + 100 * (i + 1));
  }

  // All but what a step reads of its rows.
  DecodeStep on_device(int cluster) const {
    DecodeStep args;
    args.dtype = kDType<T>;
    args.layers = kLayers;
    args.heads = kHeads;
    args.hidden = kWidth;
    args.intermediate = kInner;
    args.prefix_len = kPrefix;
    args.num_words = kVocabulary;
    args.num_positions = kMostPositions;
    args.cluster = cluster;
    args.words = words.device.data();
    args.positions = positions.device.data();
    args.gamma = norm.gamma.device.data();
    args.beta = norm.beta.device.data();
    args.eps = kEps;
    for (int i = 0; i < kLayers; ++i) args.layer[i] = layers[i].on_device();
    return args;
  }

  // The rows (R, D) behind the last layer; stores keys and values.
  std::vector<double> operator()(const StepRows& rows) {
    std::vector<double> x;
    for (size_t r = 0; r < rows.ids.size(); ++r)
      for (int i = 0; i < kWidth; ++i)
        x.push_back(double{value(words.host[rows.ids[r] * kWidth + i])} +
                    value(positions.host[rows.positions[r] * kWidth + i]));
    x = norm(x);
    for (auto& layer : layers) x = layer(x, rows);
    return x;
  }

  int entries;
  Vector<T> words, positions;
  Norm<T> norm;
  Affine<T, W> head;
  std::deque<RandomLayer<T, W>> layers;  // which cannot be moved
};

}  // namespace gitfast::cuda
