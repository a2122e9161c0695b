// linear of int8 weights where x is made whole numbers, of int8 and of w8a8.
#pragma once

#include "activation-inl.h"
#include "pairs-inl.h"
#include "product-inl.h"
#include "wholes-inl.h"

#if defined(GITFAST_INT8_PRODUCTS) || defined(GITFAST_BYTE_PRODUCTS)

namespace gitfast::cpu {
namespace {

template <class Kind>
constexpr int64_t kRowsOfTile = kTileRows / Kind::kRows;  // of x
template <class Kind>
constexpr int64_t kQuantizedRows = 204 / Kind::kRows;  // rows whose sums wait together for the next block of k

// As linear_block. The int32 sums of a tile become float32 as soon as it has them, in the nearest cache.
template <class Kind, class Source, class Inner, int64_t kMaxRows, int64_t kMaxPanels>
void int8_block(const LinearArgs& args, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
  constexpr bool kPrepare = !std::is_same_v<Source, Inner>;
  constexpr int64_t kStride = kMaxPanels * kPanel, kPanelWords = kSumBlock / 4 * kPanel;
  alignas(64) float sums[kMaxRows * kStride], whole[kTileRows * kStride];
  alignas(64) typename Inner::Word prepared[kPrepare ? Kind::kBlockWords / Inner::kTerms * kPanel : 1];
  const PackedLinear& w = *args.w;
  const auto* words = static_cast<const uint32_t*>(w.panels) + panel * w.panel_words();
  const int64_t row_words = quantized_words(w.k) / Kind::kRows, stride = Kind::kRows * row_words;
  const uint32_t* x = args.rounded + row * stride;
  Product<Inner> p = {};
  p.a_stride = row_words;
  p.step = kPanel;
  p.odd = kWidth;
  p.pair = w.panel_words();
  p.vectors = panels * (kPanel / kWidth);
  p.c = whole;
  p.c_stride = kStride;
  const RowTiles tiles(rows, kRowsOfTile<Kind>);
  for (int64_t k = 0; k < w.k; k += kSumBlock, words += kPanelWords, x += Kind::kBlockStride) {
    const int64_t n = smaller(kSumBlock, w.k - k);
    p.k = ceil_div(n * Kind::kBlockWords, kSumBlock);
    if constexpr (kPrepare) {
      prepare<Source, Inner>(words, ceil_div(n, 4), prepared);
      p.b = prepared;
    } else {
      p.b = words;
    }
    Ahead ahead(w, words + kPanelWords, kPanelWords, tiles.count);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t first = tiles.split(t), height = tiles.split(t + 1) - first;
      p.a = reinterpret_cast<const typename Kind::Term*>(x + first * stride);
      if constexpr (kCached<Inner>) ahead.fetch_part();
      product_of_tile(p, Kind::kRows * height);
      for (int64_t r = 0; r < height; ++r) {
        const uint32_t* units = x + (first + r) * stride + Kind::kBlockWords;
        for (int64_t v = 0; v < p.vectors; ++v) {
          const F32x16 sum = Kind::sums(whole + Kind::kRows * r * kStride + v * kWidth, kStride, units, row_words);
          float* to = sums + (first + r) * kStride + v * kWidth;
          store(to, k > 0 ? load(to) + sum : sum);
        }
      }
    }
  }
  finish_panels<kStride>(args, sums, row, rows, panel, panels);
}

// Few rows read weights as they are, several panels side by side.
template <class Kind, class Source, int64_t kMaxRows>
void linear_of_few_wholes(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t rows = Kind::kRows * RowTiles(args.m, kRowsOfTile<Kind>).height();
  const int64_t columns = kPaired<Source> ? kPanel : columns_at_once<Source>(static_cast<int>(rows)) * kWidth;
  const int64_t panels = larger(1, columns / kPanel);
  for (int64_t p = panel_begin; p < panel_end; p += panels)
    int8_block<Kind, Source, Source, kMaxRows, 4>(args, 0, args.m, p, smaller(panels, panel_end - p));
}

template <class Kind, class Source, class Inner>
void linear_of_many_wholes(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t blocks = ceil_div(args.m, kQuantizedRows<Kind>);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = args.m * i / blocks;
    const int64_t rows = args.m * (i + 1) / blocks - row;
    for (int64_t p = panel_begin; p < panel_end; ++p)
      int8_block<Kind, Source, Inner, kQuantizedRows<Kind>, 1>(args, row, rows, p, 1);
  }
}

#if defined(GITFAST_NEON)

template <class Kind>
void linear_of_quads(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  constexpr int64_t kFew = kRowsOfTile<Kind>;
#if defined(GITFAST_PAIRED_PRODUCTS)
  // A single row takes as many instructions in units as by sdot.
  if (args.m > 1 && whole_units(*args.w)) {
    if (args.m <= kFew) return linear_of_few_wholes<Kind, Int8Units, kFew>(args, panel_begin, panel_end);
    return linear_of_many_wholes<Kind, Int8Units, Cached<Grouped<Int8Units>>>(args, panel_begin, panel_end);
  }
#endif
  if (args.m <= kFew) return linear_of_few_wholes<Kind, Int8Quads, kFew>(args, panel_begin, panel_end);
  linear_of_many_wholes<Kind, Int8Quads, Int8Quads>(args, panel_begin, panel_end);
}

constexpr auto linear_of_int8 = linear_of_quads<Wholes>;
constexpr auto linear_of_bytes = linear_of_quads<Bytes>;

#else

// Source as the weights are stored, Inner as many rows multiply them.
template <class Kind, class Source, class Inner>
void linear_of_wholes(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
#if defined(__AVX512BF16__)
  constexpr int64_t kFew = 4 * kTileRows;  // Zen 4 widens beside its multiplications
#else
  constexpr int64_t kFew = 2 * kTileRows;
#endif
  if (args.m <= kFew) return linear_of_few_wholes<Kind, Source, kFew>(args, panel_begin, panel_end);
  linear_of_many_wholes<Kind, Source, Cached<Inner>>(args, panel_begin, panel_end);
}

#if defined(GITFAST_INT8_PRODUCTS)
constexpr auto linear_of_int8 = linear_of_wholes<Wholes, Int8AsInt16, Int16Pairs>;
#endif
#if defined(GITFAST_BYTE_PRODUCTS)
constexpr auto linear_of_bytes = linear_of_wholes<Bytes, Int8Quads, Terms<Int8Quad>>;
#endif

#endif

}  // namespace
}  // namespace gitfast::cpu

#endif
