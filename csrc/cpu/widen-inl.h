// Packed weights of fewer bits as the terms that the instruction set multiplies: pairs of bfloat16, or float32.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

namespace gitfast::cpu {
namespace {

#if defined(__AVX512BF16__)
using ShortTerm = Bf16Pair;
constexpr int64_t kShortTerms = 2;  // weights in one term
#else
using ShortTerm = float;
constexpr int64_t kShortTerms = 1;
#endif

// Weight bytes to fetch ahead of those being widened.
constexpr int64_t kWidenPrefetch = 2048;

#if defined(__AVX512BF16__)

// The bfloat16 of the whole numbers 0 to 127: their low and their high bytes.
struct WholeNumbers {
  alignas(64) uint8_t low[128], high[128];
  constexpr WholeNumbers() : low(), high() {
    for (uint32_t n = 1; n < 128; ++n) {
      uint32_t exponent = 0;
      while (n >> (exponent + 1)) ++exponent;
      const uint32_t bits = (127 + exponent) << 7 | ((n << (7 - exponent)) & 0x7fu);
      low[n] = static_cast<uint8_t>(bits & 0xffu);
      high[n] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
constexpr WholeNumbers kWholeNumbers;

// `words` of a panel, in whole rows, as 2 rows of pairs for every row.
inline void widen_int8(const uint32_t* from, int64_t words, Bf16Pair* to) {
  const __m512i low0 = _mm512_load_si512(kWholeNumbers.low), low1 = _mm512_load_si512(kWholeNumbers.low + 64);
  const __m512i high0 = _mm512_load_si512(kWholeNumbers.high), high1 = _mm512_load_si512(kWholeNumbers.high + 64);
  const __m512i sign_bit = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t i = 0; i < words; i += kPanel, from += kPanel, to += 2 * kPanel)
    for (int64_t v = 0; v < kPanel; v += kWidth) {
      __builtin_prefetch(reinterpret_cast<const char*>(from + v) + kWidenPrefetch);
      const __m512i w = _mm512_loadu_si512(from + v);
      const __m512i size = _mm512_abs_epi8(w);
      const __m512i low = _mm512_permutex2var_epi8(low0, size, low1);
      const __m512i high = _mm512_permutex2var_epi8(high0, size, high1);
      const __m512i with_sign = _mm512_ternarylogic_epi32(w, sign_bit, high, 0xea);  // w & sign_bit | high
      _mm512_storeu_si512(to + v, _mm512_unpacklo_epi8(low, with_sign));
      _mm512_storeu_si512(to + kPanel + v, _mm512_unpackhi_epi8(low, with_sign));
    }
}

void round_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* pairs) {
  constexpr int64_t kAtOnce = 2 * kWidth;
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    int64_t i = 0;
    for (; i + kAtOnce <= k; i += kAtOnce, pairs += kWidth)
      _mm512_storeu_si512(pairs, (__m512i)_mm512_cvtne2ps_pbh(load(x + i + kWidth).part[0], load(x + i).part[0]));
    if (const int64_t rest = k - i; rest > 0) {
      const F32x16 first = load_part(x + i, smaller(rest, kWidth));
      const F32x16 second = load_part(x + i + kWidth, larger(rest - kWidth, 0));
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second.part[0], first.part[0]);
      const int64_t words = ceil_div(rest, 2);
      _mm512_mask_storeu_epi32(pairs, static_cast<__mmask16>((1u << words) - 1), both);
      pairs += words;
    }
  }
}
constexpr auto kRoundRows = round_rows;

#else

typedef uint16_t VecHalves __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecInts __attribute__((vector_size(kLanes * 4)));

// Two rows of float32 for every row of pairs of bfloat16.
inline void widen_bf16(const uint32_t* from, int64_t words, float* to) {
  for (int64_t i = 0; i < words; i += kPanel, from += kPanel, to += 2 * kPanel) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kWidenPrefetch);
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kWidenPrefetch + 64);
    for (int64_t v = 0; v < kPanel; v += kLanes) {
      const VecBits pair = (VecBits)load_vec(from + v);
      store_vec(to + v, (Vec)(pair << 16));
      store_vec(to + kPanel + v, (Vec)(pair & 0xffff0000u));
    }
  }
}

// The four terms of each column of a vector, as the bytes of its word.
inline VecInts gather_terms(VecBits block) {
  const VecHalves x = (VecHalves)block;
#if defined(__AVX512F__)
  const VecHalves order = {0,  4,  1,  5,  2,  6,  3,  7,  8,  12, 9,  13, 10, 14, 11, 15,
                           16, 20, 17, 21, 18, 22, 19, 23, 24, 28, 25, 29, 26, 30, 27, 31};
#elif defined(__AVX2__)
  const VecHalves order = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
#else
  const VecHalves order = {0, 4, 1, 5, 2, 6, 3, 7};
#endif
  return (VecInts)__builtin_shuffle(x, order);
}

// Four rows of float32 for every row of int8.
inline void widen_int8(const uint32_t* from, int64_t words, float* to) {
  for (int64_t i = 0; i < words; i += kPanel, from += kPanel, to += 4 * kPanel) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kWidenPrefetch);
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kWidenPrefetch + 64);
    for (int64_t v = 0; v < kPanel; v += kLanes) {
      const VecInts word = gather_terms((VecBits)load_vec(from + v));
      store_vec(to + v, __builtin_convertvector(word << 24 >> 24, Vec));
      store_vec(to + kPanel + v, __builtin_convertvector(word << 16 >> 24, Vec));
      store_vec(to + 2 * kPanel + v, __builtin_convertvector(word << 8 >> 24, Vec));
      store_vec(to + 3 * kPanel + v, __builtin_convertvector(word >> 24, Vec));
    }
  }
}
constexpr void (*kRoundRows)(const float*, int64_t, int64_t, int64_t, uint32_t*) = nullptr;

#endif

}  // namespace
}  // namespace gitfast::cpu
