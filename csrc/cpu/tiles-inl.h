// Products in the tile registers of AMX: of layers, 32 rows by a block of one panel or few rows by each panel in turn,
// and of attention. An output is one chain of sums over tiles of k in ascending order, so that a row's bits do not
// depend on how many there are.
//
// With GITFAST_EMULATE_AMX the registers are arrays: the same loops then run, and are tested, where there is no AMX.
#pragma once

#include "product-inl.h"

namespace gitfast::cpu {
namespace {

// Products of bfloat16 go through tile registers where there are some, those of one row too.
#if defined(__AMX_BF16__) || defined(GITFAST_EMULATE_AMX)
#define GITFAST_TILES 1
template <class Source>
constexpr bool kTiled = std::is_same_v<typename Source::Term, Bf16Pair>;

// The shapes of the registers: their rows, and the 4-byte words in each row. None has 0 of both and is not used.
struct TileShapes {
  uint8_t rows[8];
  uint8_t words[8];
};

// For sums of up to kTiledRows rows: 0 and 1 for the first 16 of them and 32 columns, 2 and 3 for the rows after them;
// 4 and 5 hold A, 6 and 7 hold B.
constexpr TileShapes shapes_of_rows(int64_t rows) {
  const auto lower = static_cast<uint8_t>(rows < kTileSide ? rows : kTileSide);
  const auto upper = static_cast<uint8_t>(rows - lower);
  const uint8_t side = kTileSide, upper_words = upper > 0 ? side : uint8_t{0};
  return {{lower, lower, upper, upper, lower, upper, side, side},
          {side, side, upper_words, upper_words, side, upper_words, side, side}};
}

// For sums of up to 16 rows and 64 columns, in 0 to 3, over K of any length: 4 holds A and 6 holds B; 5 and 7 hold the
// last of them, K % 16 words deep.
constexpr TileShapes shapes_of_depth(int64_t rows, int64_t k) {
  const auto r = static_cast<uint8_t>(rows), tail = static_cast<uint8_t>(k % kTileSide);
  const uint8_t side = kTileSide, tail_rows = tail > 0 ? r : uint8_t{0}, tail_words = tail > 0 ? side : uint8_t{0};
  return {{r, r, r, r, r, tail_rows, side, tail}, {side, side, side, side, side, tail, side, tail_words}};
}

#if defined(GITFAST_EMULATE_AMX)

// Refuses, by ending the program, what the CPU refuses.
struct TileRegisters {
  uint32_t words[8][kTileSide][kTileSide];
  const TileShapes shapes;

  explicit TileRegisters(const TileShapes& shapes) : shapes(shapes) {
    for (int t = 0; t < 8; ++t) {
      must(shapes.rows[t] <= kTileSide && shapes.words[t] <= kTileSide);
      must((shapes.rows[t] == 0) == (shapes.words[t] == 0));
    }
  }

  template <int T>
  void zero() {
    must(shapes.rows[T] > 0);
    __builtin_memset(words[T], 0, sizeof words[T]);
  }
  template <int T>
  void load(const void* from, int64_t row_bytes) {
    zero<T>();
    for (int64_t r = 0; r < shapes.rows[T]; ++r)
      __builtin_memcpy(words[T][r], static_cast<const char*>(from) + r * row_bytes, size_t{4} * shapes.words[T]);
  }
  template <int T>
  void store(void* to, int64_t row_bytes) const {
    must(shapes.rows[T] > 0);
    for (int64_t r = 0; r < shapes.rows[T]; ++r)
      __builtin_memcpy(static_cast<char*>(to) + r * row_bytes, words[T][r], size_t{4} * shapes.words[T]);
  }
  // C += A B, pairs of bfloat16: the products of their first halves and those of their second ones are added apart.
  template <int C, int A, int B>
  void multiply() {
    static_assert(C < 4 && A >= 4 && B > A);
    must(shapes.rows[C] > 0 && shapes.rows[A] == shapes.rows[C]);
    must(shapes.words[B] == shapes.words[C] && shapes.words[A] == shapes.rows[B]);
    for (int64_t r = 0; r < shapes.rows[C]; ++r)
      for (int64_t c = 0; c < shapes.words[C]; ++c) {
        float first = 0, second = 0;
        for (int64_t k = 0; k < shapes.words[A]; ++k) {
          first += as_float(words[A][r][k] << 16) * as_float(words[B][k][c] << 16);
          second += as_float(words[A][r][k] & 0xffff0000u) * as_float(words[B][k][c] & 0xffff0000u);
        }
        const float sum = as_float(words[C][r][c]) + (first + second);
        __builtin_memcpy(&words[C][r][c], &sum, 4);
      }
  }

 private:
  static void must(bool holds) {
    if (!holds) __builtin_trap();
  }
  static float as_float(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
};

#else

// The registers of this thread: taken here, given back at the end of the scope.
struct TileRegisters {
  explicit TileRegisters(const TileShapes& shapes) {
    alignas(64) uint8_t config[64] = {1};  // palette 1; from byte 16 the bytes of a row, from 48 the rows
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = static_cast<uint8_t>(4 * shapes.words[t]);
      config[48 + t] = shapes.rows[t];
    }
    asm volatile("ldtilecfg %0" ::"m"(config));  // all of it: GCC 12's own function tells it of the first 8 bytes
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  // In assembly: the compilers' own functions are macros, to which a template's number is a name.
  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void load(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, int64_t row_bytes) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#endif

// C (32, 32) [+]= A (32, K) B (K, 32), or the first 16 rows of it; K is `words` pairs, whole tiles. A's tiles follow
// one another, those of the other 16 rows `upper` words behind; C is four tiles; rows of B are kPanel words.
template <bool kUpper>
void tiled_product(TileRegisters& tiles, const Bf16Pair* a, int64_t upper, const Bf16Pair* b, int64_t words, float* c,
                   bool add, Ahead& ahead) {
  constexpr int64_t kTileRow = kTileSide * 4, kPanelRow = kPanel * 4;
  if (add) {
    tiles.load<0>(c, kTileRow);
    tiles.load<1>(c + kTileWords, kTileRow);
    if constexpr (kUpper) {
      tiles.load<2>(c + 2 * kTileWords, kTileRow);
      tiles.load<3>(c + 3 * kTileWords, kTileRow);
    }
  } else {
    tiles.zero<0>();
    tiles.zero<1>();
    if constexpr (kUpper) {
      tiles.zero<2>();
      tiles.zero<3>();
    }
  }
  for (int64_t k = 0; k < words; k += kTileSide, a += kTileWords, b += kTileSide * kPanel) {
    tiles.load<6>(b, kPanelRow);
    tiles.load<4>(a, kTileRow);
    tiles.load<7>(b + kTileSide, kPanelRow);
    tiles.multiply<0, 4, 6>();
    tiles.multiply<1, 4, 7>();
    if constexpr (kUpper) {
      tiles.load<5>(a + upper, kTileRow);
      tiles.multiply<2, 5, 6>();
      tiles.multiply<3, 5, 7>();
    }
    ahead.fetch_part();
  }
  tiles.store<0>(c, kTileRow);
  tiles.store<1>(c + kTileWords, kTileRow);
  if constexpr (kUpper) {
    tiles.store<2>(c + 2 * kTileWords, kTileRow);
    tiles.store<3>(c + 3 * kTileWords, kTileRow);
  }
}

// `weights` weights of each column of a panel as pairs, filled up with zeros to whole tiles.
template <class Source>
void widen_tiles(const typename Source::Word* words, int64_t weights, Bf16Pair* to) {
  const int64_t rows = ceil_div(weights, kWeightsIn<Bf16Pair> * Source::kTerms);
  widen<Source>(words, rows, to);
  const int64_t pairs = rows * Source::kTerms, whole = rounded_words(weights);
  if (pairs < whole) __builtin_memset(to + pairs * kPanel, 0, static_cast<size_t>((whole - pairs) * kPanel) * 4);
}

// Bytes of weights that are asked for ahead of those multiplied. Within 4 to 8 KB memory is read at its full speed
// (40 GB/s on two cores of a Granite Rapids); the hardware's own prefetching reaches 27.
constexpr int64_t kStreamAhead = 8192;

// C (rows, 32) = A (rows, K) B (K, 32) for as many rows as `tiles` is set for, at most 16 if !kUpper and at most 32 if
// it is; the weights are read once, and the sums stay in registers over all of K.
template <bool kUpper, class Source>
void stream_panel(TileRegisters& tiles, const Bf16Pair* a, int64_t a_stride, const typename Source::Word* words,
                  int64_t weights, float* c, int64_t c_stride) {
  constexpr int64_t kTileWeights = kTileSide * kWeightsIn<Bf16Pair>;  // of one column in a tile
  constexpr int64_t kWords = kTileSide / Source::kTerms * kPanel;     // that hold them, of all columns
  constexpr int64_t kLine = 64, kTileBytes = kWords * 4;
  constexpr int64_t b_bytes = kPanel * 4;
  alignas(64) Bf16Pair wide[2][kTileSide * kPanel];  // in turn: a tile is loaded while the next one is widened
  tiles.zero<0>();
  tiles.zero<1>();
  if constexpr (kUpper) {
    tiles.zero<2>();
    tiles.zero<3>();
  }
  const int64_t a_bytes = a_stride * 4;
  for (int64_t k = 0, i = 0; k < weights; k += kTileWeights, ++i, words += kWords) {
    for (int64_t line = 0; line < kTileBytes; line += kLine)
      __builtin_prefetch(reinterpret_cast<const char*>(words) + kStreamAhead + line);
    const auto* b = reinterpret_cast<const Bf16Pair*>(words);
    if (Source::kTerms > 1 || k + kTileWeights > weights) {
      widen_tiles<Source>(words, smaller(kTileWeights, weights - k), wide[i % 2]);
      b = wide[i % 2];
    }
    const Bf16Pair* rows = a + i * kTileSide;
    tiles.load<6>(b, b_bytes);
    tiles.load<7>(b + kTileSide, b_bytes);
    tiles.load<4>(rows, a_bytes);
    tiles.multiply<0, 4, 6>();
    tiles.multiply<1, 4, 7>();
    if constexpr (kUpper) {
      tiles.load<5>(rows + kTileSide * a_stride, a_bytes);
      tiles.multiply<2, 5, 6>();
      tiles.multiply<3, 5, 7>();
    }
  }
  tiles.store<0>(c, c_stride * 4);
  tiles.store<1>(c + kTileSide, c_stride * 4);
  if constexpr (kUpper) {
    float* upper = c + kTileSide * c_stride;
    tiles.store<2>(upper, c_stride * 4);
    tiles.store<3>(upper + kTileSide, c_stride * 4);
  }
}

// Add the product of A's tile at `a`, loaded to register A, and the V tiles of B `at` words behind `b`, each loaded to
// register B, to the sums in 0 to V - 1.
template <int V, int A, int B>
void multiply_columns(TileRegisters& tiles, const Bf16Pair* a, int64_t a_bytes, const Bf16Pair* const* b, int64_t at,
                      int64_t b_bytes) {
  tiles.load<A>(a, a_bytes);
  tiles.load<B>(b[0] + at, b_bytes);
  tiles.multiply<0, A, B>();
  if constexpr (V > 1) {
    tiles.load<B>(b[1] + at, b_bytes);
    tiles.multiply<1, A, B>();
  }
  if constexpr (V > 2) {
    tiles.load<B>(b[2] + at, b_bytes);
    tiles.multiply<2, A, B>();
    tiles.load<B>(b[3] + at, b_bytes);
    tiles.multiply<3, A, B>();
  }
}

// Columns [v, v + V) of C, in vectors of 16.
template <int V>
void tiled_columns(TileRegisters& tiles, const Product<Pairs>& p, int64_t v) {
  const int64_t a_bytes = p.a_stride * 4, b_bytes = p.step * 4, c_bytes = p.c_stride * 4;
  const Bf16Pair* b[V];
  for (int64_t i = 0; i < V; ++i) b[i] = p.b + (v + i) / 2 * p.pair + (v + i) % 2 * p.odd;
  tiles.zero<0>();
  if constexpr (V > 1) tiles.zero<1>();
  if constexpr (V > 2) {
    tiles.zero<2>();
    tiles.zero<3>();
  }
  int64_t k = 0;
  for (; k + kTileSide <= p.k; k += kTileSide)
    multiply_columns<V, 4, 6>(tiles, p.a + k, a_bytes, b, k * p.step, b_bytes);
  if (k < p.k) multiply_columns<V, 5, 7>(tiles, p.a + k, a_bytes, b, k * p.step, b_bytes);
  float* c = p.c + v * kWidth;
  tiles.store<0>(c, c_bytes);
  if constexpr (V > 1) tiles.store<1>(c + kWidth, c_bytes);
  if constexpr (V > 2) {
    tiles.store<2>(c + 2 * kWidth, c_bytes);
    tiles.store<3>(c + 3 * kWidth, c_bytes);
  }
}

// C (rows, columns) = A (rows, K) B (K, columns) for up to 16 rows and any K: what attention multiplies.
inline void tiled_product_of_rows(const Product<Pairs>& p, int64_t rows) {
  TileRegisters tiles(shapes_of_depth(rows, p.k));
  int64_t v = 0;
  for (; v + 4 <= p.vectors; v += 4) tiled_columns<4>(tiles, p, v);
  for (; v + 2 <= p.vectors; v += 2) tiled_columns<2>(tiles, p, v);
  if (v < p.vectors) tiled_columns<1>(tiles, p, v);
}

#else

template <class Source>
constexpr bool kTiled = false;

#endif

}  // namespace
}  // namespace gitfast::cpu
