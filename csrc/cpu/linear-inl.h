// linear: x (M, K) times packed panels, with bias, activation and residual applied as the sums leave the registers.
#pragma once

#include "product-inl.h"

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

// y = act(sum + bias) + residual for the outputs [column, column + n) of one row, n <= 16.
inline void finish(const LinearArgs& args, F32x16 sum, int64_t row, int64_t column, int64_t n) {
  const float* bias = args.w->bias ? args.w->bias + column : nullptr;
  const float* residual = args.residual ? args.residual + row * args.y_stride + column : nullptr;
  float* y = args.y + row * args.y_stride + column;
  if (n == kWidth) {
    if (bias) sum = sum + load(bias);
    sum = activate(sum, args.act);
    if (residual) sum = sum + load(residual);
    store(y, sum);
  } else {
    if (bias) sum = sum + load_part(bias, n);
    sum = activate(sum, args.act);
    if (residual) sum = sum + load_part(residual, n);
    store_part(y, sum, n);
  }
}

// Rows [row, row + rows) of the panels [panel, panel + panels).
template <int64_t kMaxRows, int64_t kMaxPanels>
void linear_block(const LinearArgs& args, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
  constexpr int64_t kStride = kMaxPanels * kPanel;
  alignas(64) float sums[kMaxRows * kStride];
  const int64_t depth = args.w->k;
  const RowTiles tiles(rows);
  Product p = {};
  p.a_stride = args.x_stride;
  p.step = kPanel;
  p.odd = kWidth;
  p.pair = depth * kPanel;
  p.vectors = panels * kPanelVectors;
  p.c_stride = kStride;
  for (int64_t k = 0; k < depth; k += kSumBlock) {
    p.k = smaller(kSumBlock, depth - k);
    p.b = args.w->panels + (panel * depth + k) * kPanel;
    p.add = k > 0;
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t r = tiles.split(t);
      p.a = args.x + (row + r) * args.x_stride + k;
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

// Few rows: the weights are read once, several panels side by side.
void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.m <= kTileRows) {
    constexpr int64_t kMaxPanels = 4;
    const int64_t panels = larger(1, columns_at_once(static_cast<int>(args.m)) / kPanelVectors);
    for (int64_t p = panel_begin; p < panel_end; p += panels)
      linear_block<kTileRows, kMaxPanels>(args, 0, args.m, p, smaller(panels, panel_end - p));
    return;
  }
  const int64_t blocks = ceil_div(args.m, kRowsAtOnce);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = args.m * i / blocks;
    const int64_t rows = args.m * (i + 1) / blocks - row;
    for (int64_t p = panel_begin; p < panel_end; ++p) linear_block<kRowsAtOnce, 1>(args, row, rows, p, 1);
  }
}

}  // namespace
}  // namespace gitfast::cpu
