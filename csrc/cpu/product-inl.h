// The one inner loop of every matrix product: a tile of outputs held in registers, each a single chain of
// multiply-adds in ascending k. The tile's shape changes only which outputs are computed together, never their values.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

namespace gitfast::cpu {
namespace {

// Rows of the largest tile, and how many F32x16 sums the registers hold beside the operands.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
constexpr int kTileSums = 24;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
constexpr int kTileSums = 6;
#else
constexpr int kTileRows = 3;
constexpr int kTileSums = 3;
#endif

// Terms of B to fetch ahead. Wide tiles read enough streams side by side for the hardware to keep up on its own.
constexpr int64_t kPrefetch = 64;

// C (rows, columns) [+]= A (rows, K) B (K, columns), the columns counted in vectors of 16. Vector v of term k of B lies
// at b + k * step + v / 2 * pair + v % 2 * odd; `tail` more columns (< 16) follow the whole vectors. A term T is a
// float, or a pair of bfloat16; K and the strides of A and B count terms.
template <class T>
struct Product {
  const T* a;
  int64_t a_stride;
  int64_t k;
  const T* b;
  int64_t step, odd, pair;
  int64_t vectors;
  int64_t tail;
  float* c;
  int64_t c_stride;
  bool add;
};

template <int R, int V, bool kTail = false, class T>
void tile(const Product<T>& p, int64_t v) {
  constexpr int kVecs = V * kParts;
  const T* a = p.a;
  const T* b = p.b + v / 2 * p.pair + v % 2 * p.odd;
  Vec sum[R][kVecs];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec{};
  for (int64_t k = 0; k < p.k; ++k, ++a, b += p.step) {
    Vec x[kVecs];
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      const T* at = b + i / kParts / 2 * p.pair + i / kParts % 2 * p.odd;
      if (V <= 2 && i % kParts == 0) __builtin_prefetch(at + kPrefetch * p.step);
      x[i] = kTail ? load_part(at, p.tail).part[i % kParts] : load_vec(at + i % kParts * kLanes);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const T ar = a[r * p.a_stride];
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) sum[r][i] = multiply_add(ar, x[i], sum[r][i]);
    }
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
template <int R, int V, class T>
void columns(const Product<T>& p, int64_t v) {
  for (; v + V <= p.vectors; v += V) tile<R, V>(p, v);
  if constexpr (V > 1) {
    columns<R, V / 2>(p, v);
  } else if (p.tail) {
    tile<R, 1, true>(p, v);
  }
}

// Few rows take more columns at once, so that enough independent sums are in flight.
constexpr int columns_at_once(int rows) {
  int v = 8;
  while (v > 1 && v * rows > kTileSums) v /= 2;
  return v;
}

template <int R = kTileRows, class T>
void product_of_rows(const Product<T>& p, int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return product_of_rows<R - 1>(p, rows);
  }
  columns<R, columns_at_once(R)>(p, 0);
}

// Splits `rows` into tiles of nearly equal height; the height of tile i is split(i + 1) - split(i).
struct RowTiles {
  int64_t rows;
  int64_t count;
  explicit RowTiles(int64_t rows) : rows(rows), count(ceil_div(rows, kTileRows)) {}
  int64_t split(int64_t i) const { return rows * i / count; }
};

}  // namespace
}  // namespace gitfast::cpu
