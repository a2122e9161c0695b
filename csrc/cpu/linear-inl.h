// linear: x (M, K) times packed panels; scales, bias, activation and residual are applied as the sums leave the
// registers.
#pragma once

#include "activation-inl.h"
#include "pairs-inl.h"
#include "product-inl.h"
#include "tiles-inl.h"

namespace gitfast::cpu {
namespace {

constexpr int64_t kRowsAtOnce = 204;  // rows whose sums wait together for the next block of k
constexpr int64_t kPanelVectors = kPanel / kWidth;

// y[0, n) = act(sum * scale + bias) + residual for the outputs [column, column + n) of one row, n <= kWidth.
__attribute__((always_inline)) inline void finish(const LinearArgs& args, F32x16 sum, int64_t row, int64_t column,
                                                  int64_t n, float* y) {
  const float* scales = args.w->scales ? args.w->scales + column : nullptr;
  const float* bias = args.w->bias ? args.w->bias + column : nullptr;
  const float* residual = args.residual ? args.residual + row * args.y_stride + column : nullptr;
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

// x as the product reads it: rows of terms.
template <class Term>
struct Rows {
  const Term* first;
  int64_t stride;
};

#if defined(GITFAST_BF16_PRODUCTS)

// finish_panels for y that leaves rounded: the 32 columns of a panel are 16 words of a row, filled up with zeros.
template <class SumsAt>
void finish_rounded(const LinearArgs& args, int64_t row, int64_t rows, int64_t panel, int64_t panels, SumsAt sums_at) {
  const int64_t words = rounded_words(args.w->n), last = smaller(panels, args.w->num_panels() - panel);
  const bool tiles = kTiled<Pairs> && many_rows(args.m);
  for (int64_t p = 0; p < last; ++p) {
    alignas(64) float y[kPanel] = {};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < kPanelVectors; ++v) {
        const int64_t column = (panel + p) * kPanel + v * kWidth, n = smaller(kWidth, args.w->n - column);
        if (n > 0) finish(args, load(sums_at(r, p * kPanelVectors + v)), row + r, column, n, y + v * kWidth);
      }
      const int64_t at = tiles ? Pairs::tile_row(row + r, words) + (panel + p) * kTileWords
                               : (row + r) * words + (panel + p) * kTileSide;
      Pairs::store_pairs(args.y_rounded + at, load(y), load(y + kWidth));
    }
  }
}

#endif

// Finish the sums of the panels from `panel` on, rows [row, row + rows) of y: those of row r and vector v of columns
// are at sums_at(r, v).
template <class SumsAt>
void finish_panels(const LinearArgs& args, int64_t row, int64_t rows, int64_t panel, int64_t panels, SumsAt sums_at) {
#if defined(GITFAST_BF16_PRODUCTS)
  if (args.y_rounded) return finish_rounded(args, row, rows, panel, panels, sums_at);
#endif
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t v = 0; v < panels * kPanelVectors; ++v) {
      const int64_t column = panel * kPanel + v * kWidth;
      const int64_t n = smaller(kWidth, args.w->n - column);
      if (n > 0) finish(args, load(sums_at(r, v)), row + r, column, n, args.y + (row + r) * args.y_stride + column);
    }
}

// The same of sums (rows, kStride).
template <int64_t kStride>
void finish_panels(const LinearArgs& args, const float* sums, int64_t row, int64_t rows, int64_t panel,
                   int64_t panels) {
  finish_panels(args, row, rows, panel, panels, [&](int64_t r, int64_t v) { return sums + r * kStride + v * kWidth; });
}

}  // namespace
}  // namespace gitfast::cpu

#include "linear-int8-inl.h"
#include "linear-tiles-inl.h"

namespace gitfast::cpu {
namespace {

// Rows [row, row + rows) of the panels [panel, panel + panels). With another Inner, which many rows read, a block of
// weights is first brought into its form, and the next one is fetched while it is multiplied.
template <class Source, class Inner, int64_t kMaxRows, int64_t kMaxPanels>
void linear_block(const LinearArgs& args, Rows<typename Source::Term> x, int64_t row, int64_t rows, int64_t panel,
                  int64_t panels) {
  using Term = typename Source::Term;
  constexpr bool kPrepare = kCached<Inner> && !std::is_same_v<Inner, Cached<Source>>;
  constexpr int64_t kStride = kMaxPanels * kPanel, kTermWeights = kWeightsIn<Term>;
  constexpr int64_t kBlockWords = kSumBlock / (kTermWeights * Source::kTerms) * kPanel;
  alignas(64) float sums[kMaxRows * kStride];
  alignas(64) Term prepared[kPrepare ? kSumBlock / kTermWeights * kPanel : 1];
  const PackedLinear& w = *args.w;
  const auto* words = static_cast<const typename Source::Word*>(w.panels) + panel * w.panel_words();
  Product<Inner> p = {};
  p.a_stride = x.stride;
  p.step = kPanel;
  p.odd = kWidth;
  p.pair = w.panel_words();
  p.vectors = panels * kPanelVectors;
  p.c = sums;
  p.c_stride = kStride;
  const RowTiles tiles(rows);
  for (int64_t k = 0; k < w.k; k += kSumBlock, words += kBlockWords) {
    const int64_t n = smaller(kSumBlock, w.k - k);
    if constexpr (kPrepare) {
      prepare<Source, Inner>(words, ceil_div(n, kTermWeights * Source::kTerms), prepared);
      p.b = prepared;
    } else {
      p.b = words;
    }
    p.a = x.first + row * x.stride + k / kTermWeights;
    p.k = ceil_div(n, kTermWeights);
    p.add = k > 0;
    product_of_block(p, tiles, Ahead(w, words + kBlockWords, kBlockWords, tiles.count));
  }
  finish_panels<kStride>(args, sums, row, rows, panel, panels);
}

template <class Source>
void linear_of_many_rows(const LinearArgs& args, Rows<typename Source::Term> x, int64_t panel_begin,
                         int64_t panel_end) {
  constexpr bool kPrepare = Source::kTerms > 1 || kPaired<Source>;
  using Prepared = std::conditional_t<kPaired<Source>, Grouped<Source>, ShortTerms>;
  using Many = Cached<std::conditional_t<kPrepare, Prepared, Source>>;
  // With fewer tiles, so many lines are asked for at once that fetching as they are multiplied is faster.
  constexpr int64_t kTilesToFetch = 17;
  const int64_t blocks = ceil_div(args.m, kRowsAtOnce);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = args.m * i / blocks;
    const int64_t rows = args.m * (i + 1) / blocks - row;
    const auto block = kPrepare || RowTiles(rows).count >= kTilesToFetch ? linear_block<Source, Many, kRowsAtOnce, 1>
                                                                         : linear_block<Source, Source, kRowsAtOnce, 1>;
    for (int64_t p = panel_begin; p < panel_end; ++p) block(args, x, row, rows, p, 1);
  }
}

template <class Source>
void linear_of(const LinearArgs& args, Rows<typename Source::Term> x, int64_t panel_begin, int64_t panel_end) {
#if defined(GITFAST_TILES)
  if constexpr (kTiled<Source>) {
    if (many_rows(args.m)) return linear_in_tiles<Source>(args, x, panel_begin, panel_end);
    return linear_of_streamed_weights<Source>(args, x, panel_begin, panel_end);
  }
#endif
  if constexpr (!kTiled<Source>) {
    // Widening in registers, twice, costs less than by way of the cache, where reading and arithmetic would not
    // overlap.
    constexpr int64_t kFew = Source::kTerms > 1 ? 2 * kTileRows : kTileRows;
    if (args.m > kFew) {
#if defined(GITFAST_PAIRED_PRODUCTS)
      if constexpr (std::is_same_v<Source, Pairs>)
        if (whole_units(*args.w)) return linear_of_many_rows<Bf16Units>(args, x, panel_begin, panel_end);
#endif
      return linear_of_many_rows<Source>(args, x, panel_begin, panel_end);
    }
    // The weights are read once, several panels side by side.
    const int height = static_cast<int>(RowTiles(args.m).height());
    const int64_t panels = larger(1, columns_at_once<Source>(height) / kPanelVectors);
    for (int64_t p = panel_begin; p < panel_end; p += panels)
      linear_block<Source, Source, kFew, 4>(args, x, 0, args.m, p, smaller(panels, panel_end - p));
  }
}

void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  const Rows<float> x{args.x, args.x_stride};
  if (args.w->format == WeightFormat::f32) return linear_of<Floats>(args, x, panel_begin, panel_end);
#if defined(GITFAST_BYTE_PRODUCTS)
  if (args.w->format == WeightFormat::w8a8) return linear_of_bytes(args, panel_begin, panel_end);
#endif
#if defined(GITFAST_INT8_PRODUCTS)
  if (is_int8(args.w->format)) return linear_of_int8(args, panel_begin, panel_end);
#endif
#if defined(GITFAST_BF16_PRODUCTS)
  const Rows<Bf16Pair> terms{reinterpret_cast<const Bf16Pair*>(args.rounded), rounded_words(args.w->k)};
#else
  const Rows<float> terms = x;
#endif
#if !defined(GITFAST_INT8_PRODUCTS)
  if (is_int8(args.w->format)) return linear_of<Int8Weights>(args, terms, panel_begin, panel_end);
#endif
  linear_of<Bf16Weights>(args, terms, panel_begin, panel_end);
}

}  // namespace
}  // namespace gitfast::cpu
