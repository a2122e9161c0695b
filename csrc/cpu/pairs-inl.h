// Products of two rows by two columns at once, eight bytes of each: an instruction (bfmmla, smmla) multiplies twice
// what the inner loop of product-inl.h does with one. An output has the same bits: bfmmla is defined as two bfdot, one
// after the other, and sums of int8 are exact.
#pragma once

#include "product-inl.h"

namespace gitfast::cpu {
namespace {

// A source of units has, beside Term and Word: load(words, step, x), which makes of the words of four columns, and
// those `step` behind them, x[0] for the first two columns and x[1] for the others, eight bytes of each column side by
// side; and multiply_add(a, b, sum), sum being {row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1}.

template <class Source>
constexpr bool kPaired = false;  // whether it is one of units

// Units whose vectors x[0] and x[1] were put where their words are in a panel.
template <class Units>
struct Grouped : Units {
  static void load(const typename Units::Word* words, int64_t step, Vec* x) {
    x[0] = load_vec(words);
    x[1] = load_vec(words + step);
  }
};

template <class Units>
constexpr bool kPaired<Grouped<Units>> = true;
template <class Source>
constexpr bool kPaired<Cached<Source>> = kPaired<Source>;

// Whether a column's words are whole units: others are multiplied word by word.
inline bool whole_units(const PackedLinear& w) { return w.panel_words() / kPanel % 2 == 0; }

// `rows` rows of a panel, an even number, as Grouped has them.
template <class Units>
void group(const typename Units::Word* from, int64_t rows, typename Units::Word* to) {
  for (int64_t row = 0; row < rows; row += 2, from += 2 * kPanel, to += 2 * kPanel)
    for (int64_t i = 0; i < kPanel; i += kLanes) {
      Vec x[2];
      Units::load(from + i, kPanel, x);
      store_vec(to + i, x[0]);
      store_vec(to + kPanel + i, x[1]);
    }
}

// `rows` rows of a panel's words as Inner has them.
template <class Source, class Inner>
void prepare(const typename Source::Word* from, int64_t rows, typename Inner::Word* to) {
  if constexpr (kPaired<Source>)
    group<Source>(from, rows, to);
  else
    widen<Source>(from, rows, to);
}

#if defined(GITFAST_PAIRED_PRODUCTS)

struct Bf16Units {
  using Term = Bf16Pair;
  using Word = Bf16Pair;
  static constexpr int kTerms = 1;
  static void load(const Bf16Pair* words, int64_t step, Vec* x) {
    const Vec first = load_vec(words), second = load_vec(words + step);
    x[0] = vzip1q_f32(first, second);
    x[1] = vzip2q_f32(first, second);
  }
  using Sum = float32x4_t;
  static Sum multiply_add(Vec a, Vec b, Sum sum) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
  }
};

struct Int8Units {
  using Term = Int8Quad;
  using Word = uint32_t;
  static constexpr int kTerms = 1;
  static void load(const uint32_t* words, int64_t step, Vec* x) {
    Vec first, second;
    Int8Quads::load(words, &first);
    Int8Quads::load(words + step, &second);
    x[0] = vzip1q_f32(first, second);
    x[1] = vzip2q_f32(first, second);
  }
  using Sum = int32x4_t;
  static Sum multiply_add(Vec a, Vec b, Sum sum) {
    return vmmlaq_s32(sum, vreinterpretq_s8_f32(a), vreinterpretq_s8_f32(b));
  }
};

template <>
constexpr bool kPaired<Bf16Units> = true;
template <>
constexpr bool kPaired<Int8Units> = true;

template <class Term>
inline Vec unit_of_rows(const Term* first, const Term* second) {
  const auto load = [](const Term* from) { return vld1_f32(reinterpret_cast<const float*>(from)); };
  return vcombine_f32(load(first), load(second));
}

inline Vec halves(Vec first, Vec second, bool upper) {
  const float64x2_t a = vreinterpretq_f64_f32(first), b = vreinterpretq_f64_f32(second);
  return vreinterpretq_f32_f64(upper ? vzip2q_f64(a, b) : vzip1q_f64(a, b));
}

// A tile of 2 R rows, or of one less, by one vector of columns.
template <int R, class Source>
void tile_of_pairs(const Product<Source>& p, int64_t rows, int64_t v) {
  const auto* a = p.a;
  const auto* last = p.a + (rows - 1) * p.a_stride;  // that of an odd number stands for both of its pair
  const auto* b = p.b + v / 2 * p.pair + v % 2 * p.odd;
  typename Source::Sum sum[R][kParts][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) sum[r][i][0] = sum[r][i][1] = typename Source::Sum{};
  for (int64_t k = 0; k < p.k; k += 2, b += 2 * p.step) {
    Vec unit[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      unit[r] = unit_of_rows(a + 2 * r * p.a_stride + k, r == R - 1 ? last + k : a + (2 * r + 1) * p.a_stride + k);
    if constexpr (!kCached<Source>) {
      __builtin_prefetch(b + kPrefetch<Source, 1> * p.step);
      __builtin_prefetch(b + (kPrefetch<Source, 1> + 1) * p.step);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      Vec x[2];
      Source::load(b + i * kLanes, p.step, x);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[r][i][0] = Source::multiply_add(unit[r], x[0], sum[r][i][0]);
        sum[r][i][1] = Source::multiply_add(unit[r], x[1], sum[r][i][1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int upper = 0; upper < 2; ++upper) {
      if (2 * r + upper == rows) break;
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        const Vec x = halves((Vec)sum[r][i][0], (Vec)sum[r][i][1], upper);
        float* c = p.c + (2 * r + upper) * p.c_stride + v * kWidth + i * kLanes;
        store_vec(c, p.add ? load_vec(c) + x : x);
      }
    }
}

// 3 to kTileRows rows: those of a tile where there are that many or more.
template <class Source>
void product_of_pairs(const Product<Source>& p, int64_t rows) {
  static_assert(kTileRows == 6);
  for (int64_t v = 0; v < p.vectors; ++v)
    if (rows > 4)
      tile_of_pairs<3>(p, rows, v);
    else
      tile_of_pairs<2>(p, rows, v);
}

#endif

// Sums of `rows` rows, at most those of a tile.
template <class Source>
void product_of_tile(const Product<Source>& p, int64_t rows) {
  if constexpr (kPaired<Source>)
    product_of_pairs(p, rows);
  else
    product_of_rows(p, rows);
}

// Sums of the rows of `tiles`. Weights that are cached fetch those of the next block meanwhile.
template <class Source>
void product_of_block(const Product<Source>& p, const RowTiles& tiles, Ahead ahead) {
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t r = tiles.split(t);
    if constexpr (kCached<Source>) ahead.fetch_part();
    Product<Source> tile = p;
    tile.a += r * p.a_stride;
    tile.c += r * p.c_stride;
    product_of_tile(tile, tiles.split(t + 1) - r);
  }
}

}  // namespace
}  // namespace gitfast::cpu
