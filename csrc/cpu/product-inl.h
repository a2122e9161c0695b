// The one inner loop of every matrix product: a tile of outputs held in registers, each a single chain of
// multiply-adds in ascending k. The tile's shape changes only which outputs are computed together, never their values.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "simd-inl.h"
#include "sources-inl.h"

namespace gitfast::cpu {
namespace {

// Rows of the largest tile, and how many F32x16 sums the registers hold beside the operands.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
constexpr int kTileSums = 24;
#elif defined(__AVX2__) || defined(GITFAST_NEON)
constexpr int kTileRows = 6;
constexpr int kTileSums = 6;
#else
constexpr int kTileRows = 3;
constexpr int kTileSums = 3;
#endif

// Rows of words to fetch ahead, where they come from memory. Wide tiles read enough streams side by side for the
// hardware to keep up on its own, but for those that widen or rearrange: they wait for arithmetic between their loads.
// Tiles of a single vector ask for the next one's words too, which are in the other halves of the same 128 bytes.
template <class Source>
constexpr int64_t kPrefetchOfWide = Source::kTerms > 1 ? 16 : 0;
#if defined(GITFAST_BYTE_PRODUCTS) && !defined(GITFAST_NEON)
template <>
constexpr int64_t kPrefetchOfWide<Int8Quads> = 32;
#endif
template <class Source, int V>
constexpr int64_t kPrefetch = kCached<Source> ? 0
                              : V == 1        ? 128
                              : V == 2        ? 64
                                              : kPrefetchOfWide<Source>;

// The cache they are fetched into, as __builtin_prefetch has it: L2 is 2, L1 is 3. Measured, source by source, on Zen 4
// and on an Emerald Rapids; other CPUs follow the one whose kernels they share (docs/tuning-cpu.md).
template <class Source, int V>
constexpr int kFetchedInto =
#if defined(__AVX512BF16__)
    2;
#elif defined(__AVX512F__)
    std::is_same_v<Source, Floats> ? 2 : 3;
#elif defined(__AVX2__)
    V == 1 && Source::kTerms > 1 ? 2 : 3;
#else
    3;
#endif

// The weights that come next, asked for a few lines at a time between multiplications, and none beyond their end.
class Ahead {
 public:
  // `words` of w from `first` on, in so many parts.
  Ahead(const PackedLinear& w, const void* first, int64_t words, int64_t parts)
      : next_(static_cast<const char*>(first)) {
    const char* end = static_cast<const char*>(w.panels) + w.num_panels() * w.panel_words() * kWordBytes;
    end_ = next_ + larger(smaller(words * kWordBytes, end - next_), 0);
    lines_ = ceil_div(words * kWordBytes, parts * kLine);
  }

  void fetch_part() {
    for (int64_t i = 0; i < lines_ && next_ < end_; ++i, next_ += kLine) __builtin_prefetch(next_, 0, 2);  // into L2
  }

 private:
  static constexpr int64_t kWordBytes = 4, kLine = 64;
  const char *next_, *end_;
  int64_t lines_;
};

// C (rows, columns) [+]= A (rows, K) B (K, columns), the columns counted in vectors of 16. Words of B hold
// Source::kTerms terms each; vector v of words w lies at b + w * step + v / 2 * pair + v % 2 * odd. K counts terms, the
// strides of B words.
template <class Source>
struct Product {
  const typename Source::Term* a;
  int64_t a_stride;
  int64_t k;
  const typename Source::Word* b;
  int64_t step, odd, pair;
  int64_t vectors;
  float* c;
  int64_t c_stride;
  bool add;
  int64_t next;  // of a source that is followed: words from each of B to one that is read after all of this product
};

template <int N>
using Count = std::integral_constant<int, N>;

template <int R, int V, class Source>
void tile(const Product<Source>& p, int64_t v) {
  constexpr int kVecs = V * kParts, kTerms = Source::kTerms;
  const auto* a = p.a;
  const auto* b = p.b + v / 2 * p.pair + v % 2 * p.odd;
  const int64_t ahead = kPrefetch<Source, V> * p.step;
  Vec sum[R][kVecs];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec{};
  // Adds the first `terms` terms of one row of words.
  const auto step = [&](auto terms) __attribute__((always_inline)) {
    Vec x[kVecs][kTerms];
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      const auto* at = b + i / kParts / 2 * p.pair + i / kParts % 2 * p.odd;
      if (kPrefetch<Source, V> > 0 && i % kParts == 0 && (V > 1 || v % 2 == 0)) {
        __builtin_prefetch(at + ahead, 0, kFetchedInto<Source, V>);
        if (V == 1) __builtin_prefetch(at + ahead + p.odd, 0, kFetchedInto<Source, V>);
      }
      if (kFollowed<Source> && V > 2 && i % kParts == 0)
        __builtin_prefetch(at + p.next, 0, 2);  // into L2: 25 KB of a head, or 50
      Source::load(at + i % kParts * kLanes, x[i]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int t = 0; t < decltype(terms)::value; ++t) {
        const auto ar = a[r * p.a_stride + t];
#pragma GCC unroll 8
        for (int i = 0; i < kVecs; ++i) sum[r][i] = multiply_add(ar, x[i][t], sum[r][i]);
      }
  };
  int64_t k = 0;
  for (; k + kTerms <= p.k; k += kTerms, a += kTerms, b += p.step) step(Count<kTerms>());
  if constexpr (kTerms == 2) {
    if (k < p.k) step(Count<1>());
  } else if constexpr (kTerms == 4) {
    if (p.k - k == 1) step(Count<1>());
    if (p.k - k == 2) step(Count<2>());
    if (p.k - k == 3) step(Count<3>());
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      float* c = p.c + r * p.c_stride + v * kWidth + i * kLanes;
      store_vec(c, p.add ? load_vec(c) + sum[r][i] : sum[r][i]);
    }
}

// Vectors [v, ...) of R rows: V at a time, then the rest by halves.
template <int R, int V, class Source>
void columns(const Product<Source>& p, int64_t v) {
  for (; v + V <= p.vectors; v += V) tile<R, V>(p, v);
  if constexpr (V > 1) columns<R, V / 2>(p, v);
}

// Terms of a word for which registers are left beside all sums: two for each vector with AVX-512, but not where the
// tables that make bfloat16 of int8 take some.
#if defined(__AVX512F__) && defined(GITFAST_INT8_PRODUCTS)
constexpr int kTermsBesideSums = 2;
#else
constexpr int kTermsBesideSums = 1;
#endif

// Few rows take more columns at once, so that enough independent sums are in flight. Widening needs registers too.
template <class Source>
constexpr int columns_at_once(int rows) {
  constexpr int sums = Source::kTerms <= kTermsBesideSums ? kTileSums : kTileSums * 2 / 3;
  int v = 8;
  while (v > 1 && v * rows > sums) v /= 2;
  return v;
}

template <int R = kTileRows, class Source>
void product_of_rows(const Product<Source>& p, int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return product_of_rows<R - 1>(p, rows);
  }
  columns<R, columns_at_once<Source>(R)>(p, 0);
}

// Splits `rows` into tiles of nearly equal height, at most `height`; the height of tile i is split(i + 1) - split(i).
struct RowTiles {
  int64_t rows;
  int64_t count;
  explicit RowTiles(int64_t rows, int64_t height = kTileRows) : rows(rows), count(ceil_div(rows, height)) {}
  int64_t split(int64_t i) const { return rows * i / count; }
  int64_t height() const { return ceil_div(rows, count); }  // of the highest
};

}  // namespace
}  // namespace gitfast::cpu
