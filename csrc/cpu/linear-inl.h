// linear: x (M, K) times packed panels; scales, bias, activation and residual are applied as the sums leave the
// registers.
#pragma once

#include "product-inl.h"
#include "widen-inl.h"

namespace gitfast::cpu {
namespace {

constexpr int64_t kRowsAtOnce = 204;  // rows whose sums wait together for the next block of k
constexpr int64_t kPanelVectors = kPanel / kWidth;

inline F32x16 activate(const F32x16& x, Activation act) {
  if (act == Activation::quick_gelu) {
    const F32x16 scaled = x * splat16(1.702f);
    return x * map(scaled, sigmoid);
  }
  if (act == Activation::gelu_erf) return x * map(x, normal_cdf);
  return x;
}

// y = act(sum * scale + bias) + residual for the outputs [column, column + n) of one row, n <= 16.
inline void finish(const LinearArgs& args, F32x16 sum, int64_t row, int64_t column, int64_t n) {
  const float* scales = args.w->scales ? args.w->scales + column : nullptr;
  const float* bias = args.w->bias ? args.w->bias + column : nullptr;
  const float* residual = args.residual ? args.residual + row * args.y_stride + column : nullptr;
  float* y = args.y + row * args.y_stride + column;
  if (n == kWidth) {
    if (scales) sum = sum * load(scales);
    if (bias) sum = sum + load(bias);
    sum = activate(sum, args.act);
    if (residual) sum = sum + load(residual);
    store(y, sum);
  } else {
    if (scales) sum = sum * load_part(scales, n);
    if (bias) sum = sum + load_part(bias, n);
    sum = activate(sum, args.act);
    if (residual) sum = sum + load_part(residual, n);
    store_part(y, sum, n);
  }
}

template <class T>
constexpr int64_t kWeightsInTerm = 1;
template <>
constexpr int64_t kWeightsInTerm<Bf16Pair> = 2;

// The weights of a block of panels: where their terms [k, k + n) lie, packed, or widened to `wide`.
template <class T, int64_t kMaxPanels>
class Weights {
 public:
  explicit Weights(const PackedLinear& w) : w_(w), direct_(terms_per_word(w.format) == kWeightsInTerm<T>) {}

  int64_t panel_stride() const { return direct_ ? w_.panel_words() : kBlockTerms * kPanel; }

  const T* terms(int64_t panel, int64_t panels, int64_t k, int64_t n) {
    const int64_t per_word = terms_per_word(w_.format);
    const uint32_t* from = static_cast<const uint32_t*>(w_.panels) + panel * w_.panel_words() + k / per_word * kPanel;
    if (direct_) return reinterpret_cast<const T*>(from);
    for (int64_t p = 0; p < panels; ++p, from += w_.panel_words())
      widen(from, ceil_div(n, per_word) * kPanel, wide_ + p * kBlockTerms * kPanel);
    return wide_;
  }

 private:
  static constexpr int64_t kBlockTerms = kSumBlock / kWeightsInTerm<T>;

  void widen(const uint32_t* from, int64_t words, T* to) const {
    if constexpr (kWeightsInTerm<T> == kShortTerms) {
#if !defined(__AVX512BF16__)
      if (w_.format == WeightFormat::bf16) return widen_bf16(from, words, to);
#endif
      widen_int8(from, words, to);
    }
  }

  const PackedLinear& w_;
  const bool direct_;
  alignas(64) T wide_[kMaxPanels * kBlockTerms * kPanel];
};

// Rows [row, row + rows) of the panels [panel, panel + panels); x (M, K) as terms.
template <int64_t kMaxRows, int64_t kMaxPanels, class T>
void linear_block(const LinearArgs& args, const T* x, int64_t x_stride, int64_t row, int64_t rows, int64_t panel,
                  int64_t panels) {
  constexpr int64_t kStride = kMaxPanels * kPanel;
  alignas(64) float sums[kMaxRows * kStride];
  Weights<T, kMaxPanels> weights(*args.w);
  const int64_t depth = args.w->k;
  const RowTiles tiles(rows);
  Product<T> p = {};
  p.a_stride = x_stride;
  p.step = kPanel;
  p.odd = kWidth;
  p.pair = weights.panel_stride();
  p.vectors = panels * kPanelVectors;
  p.c_stride = kStride;
  for (int64_t k = 0; k < depth; k += kSumBlock) {
    const int64_t n = smaller(kSumBlock, depth - k);
    p.k = ceil_div(n, kWeightsInTerm<T>);
    p.b = weights.terms(panel, panels, k, n);
    p.add = k > 0;
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t r = tiles.split(t);
      p.a = x + (row + r) * x_stride + k / kWeightsInTerm<T>;
      p.c = sums + r * kStride;
      product_of_rows(p, tiles.split(t + 1) - r);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t v = 0; v < p.vectors; ++v) {
      const int64_t column = panel * kPanel + v * kWidth;
      const int64_t n = smaller(kWidth, args.w->n - column);
      if (n > 0) finish(args, load(sums + r * kStride + v * kWidth), row + r, column, n);
    }
}

// Few rows: the weights are read once, at most kMaxPanels panels side by side.
template <int64_t kMaxPanels, class T>
void linear_of_few_rows(const LinearArgs& args, const T* x, int64_t x_stride, int64_t panel_begin, int64_t panel_end) {
  const int64_t panels = smaller(kMaxPanels, larger(1, columns_at_once(static_cast<int>(args.m)) / kPanelVectors));
  for (int64_t p = panel_begin; p < panel_end; p += panels)
    linear_block<kTileRows, kMaxPanels>(args, x, x_stride, 0, args.m, p, smaller(panels, panel_end - p));
}

template <class T>
void linear_of_terms(const LinearArgs& args, const T* x, int64_t x_stride, int64_t panel_begin, int64_t panel_end) {
  if (args.m <= kTileRows) {
    if (terms_per_word(args.w->format) == kWeightsInTerm<T>)
      linear_of_few_rows<4>(args, x, x_stride, panel_begin, panel_end);
    else  // what is widened must stay in the nearest cache
      linear_of_few_rows<kWeightsInTerm<T>>(args, x, x_stride, panel_begin, panel_end);
    return;
  }
  const int64_t blocks = ceil_div(args.m, kRowsAtOnce);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = args.m * i / blocks;
    const int64_t rows = args.m * (i + 1) / blocks - row;
    for (int64_t p = panel_begin; p < panel_end; ++p) linear_block<kRowsAtOnce, 1>(args, x, x_stride, row, rows, p, 1);
  }
}

void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
#if defined(__AVX512BF16__)
  if (args.w->format != WeightFormat::f32) {
    const auto* pairs = reinterpret_cast<const Bf16Pair*>(args.rounded);
    return linear_of_terms(args, pairs, ceil_div(args.w->k, 2), panel_begin, panel_end);
  }
#endif
  linear_of_terms(args, args.x, args.x_stride, panel_begin, panel_end);
}

}  // namespace
}  // namespace gitfast::cpu
