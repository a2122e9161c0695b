// linear in the tile registers of AMX: many rows against a block of a panel that L1 holds, or few rows against weights
// that are read once.
#pragma once

#include "product-inl.h"
#include "tiles-inl.h"

#if defined(GITFAST_TILES)

namespace gitfast::cpu {
namespace {

// Twice 16 rows whose sums wait together for the next block of k: 28 KB, beside 16 KB of weights.
constexpr int64_t kPairsAtOnce = 7;
constexpr int64_t kPairSums = kTiledRows * kPanel;

// Row r of the sums of one panel, 32 rows in four tiles after another; vector v of its columns.
inline const float* tiled_sums(const float* sums, int64_t r, int64_t v) {
  const int64_t tile = r / kTileSide * kPanelVectors + v;
  return sums + tile * kTileWords + r % kTileSide * kTileSide;
}

// Rows [row, row + rows) of one panel, whose words begin at `words`. The block of weights that comes next is fetched
// into L2 while this one is multiplied, evenly over the multiplications.
template <class Source>
void tiled_block(TileRegisters& tiles, const LinearArgs& args, const Bf16Pair* a, int64_t row, int64_t rows,
                 int64_t panel, const typename Source::Word* words) {
  constexpr int64_t kBlockWords = kSumBlock / (kWeightsIn<Bf16Pair> * Source::kTerms) * kPanel;
  alignas(64) float sums[kPairsAtOnce * kPairSums];
  alignas(64) Bf16Pair wide[kSumBlock / kWeightsIn<Bf16Pair> * kPanel];
  const int64_t depth = args.w->k, upper = kTileSide * rounded_words(depth), pairs = ceil_div(rows, kTiledRows);
  for (int64_t k = 0; k < depth; k += kSumBlock, words += kBlockWords, a += kSumBlock / 2 * kTileSide) {
    const int64_t n = smaller(kSumBlock, depth - k), terms = rounded_words(n);
    const auto* b = reinterpret_cast<const Bf16Pair*>(words);
    if (Source::kTerms > 1 || n % (2 * kTileSide) != 0) {
      widen_tiles<Source>(words, n, wide);
      b = wide;
    }
    Ahead ahead(*args.w, words + kBlockWords, kBlockWords, pairs * (terms / kTileSide));
    for (int64_t i = 0; i < pairs; ++i) {
      const auto product = rows - i * kTiledRows > kTileSide ? tiled_product<true> : tiled_product<false>;
      product(tiles, a + 2 * i * upper, upper, b, terms, sums + i * kPairSums, k > 0, ahead);
    }
  }
  finish_panels(args, row, rows, panel, 1, [&](int64_t r, int64_t v) { return tiled_sums(sums, r, v); });
}

// Rows of images, in tiles as Kernels::round_tiles makes them.
template <class Source>
void linear_in_tiles(const LinearArgs& args, Rows<Bf16Pair> x, int64_t panel_begin, int64_t panel_end) {
  const PackedLinear& w = *args.w;
  const auto* panels = static_cast<const typename Source::Word*>(w.panels);
  const int64_t pairs = ceil_div(args.m, kTiledRows), blocks = ceil_div(pairs, kPairsAtOnce);
  TileRegisters tiles(shapes_of_rows(kTiledRows));
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = pairs * i / blocks * kTiledRows;
    const int64_t rows = smaller(pairs * (i + 1) / blocks * kTiledRows, args.m) - row;
    for (int64_t p = panel_begin; p < panel_end; ++p)
      tiled_block<Source>(tiles, args, x.first + row * x.stride, row, rows, p, panels + p * w.panel_words());
  }
}

// At most kTiledRows rows, as when text is decoded: what counts is the reading of the weights.
template <class Source>
void linear_of_streamed_weights(const LinearArgs& args, Rows<Bf16Pair> x, int64_t panel_begin, int64_t panel_end) {
  alignas(64) float sums[kTiledRows * kPanel];
  const PackedLinear& w = *args.w;
  const auto* words = static_cast<const typename Source::Word*>(w.panels) + panel_begin * w.panel_words();
  const auto stream = args.m > kTileSide ? stream_panel<true, Source> : stream_panel<false, Source>;
  TileRegisters tiles(shapes_of_rows(args.m));
  for (int64_t p = panel_begin; p < panel_end; ++p, words += w.panel_words()) {
    stream(tiles, x.first, x.stride, words, w.k, sums, kPanel);
    finish_panels<kPanel>(args, sums, 0, args.m, p, 1);
  }
}

}  // namespace
}  // namespace gitfast::cpu

#endif
