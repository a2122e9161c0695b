// Sources of the terms of a product's right side: as they are stored, or widened on their way to a register.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

namespace gitfast::cpu {
namespace {

template <class Term>
constexpr int64_t kWeightsIn = 1;  // weights in one term
template <>
constexpr int64_t kWeightsIn<Bf16Pair> = 2;

// A source has: Term, what is multiplied; Word, 4 bytes of one column as stored; kTerms, the terms of one word; and
// load(words, x), which makes the terms of kLanes columns, x[t] being their terms t.

// A source whose words are terms.
template <class Stored>
struct Terms {
  using Term = Stored;
  using Word = Stored;
  static constexpr int kTerms = 1;
  static void load(const Stored* words, Vec* x) { x[0] = load_vec(words); }
};

using Floats = Terms<float>;

// A source whose words lie in the cache: they were just written, or others fetch them. Its products fetch nothing.
//
// Fetching behind the end of a buffer on the stack can ask for pages that do not exist, and each such request walks the
// page table in vain: it made products 2.5 times slower on Zen, in those processes whose stacks began less than 8 KB
// above.
template <class Source>
struct Cached : Source {};
template <class Source>
constexpr bool kCached = false;
template <class Source>
constexpr bool kCached<Cached<Source>> = true;

// A source whose wide tiles fetch, instead of their own next words, those of the product behind: Product::next.
template <class Source>
struct Followed : Source {};
template <class Source>
constexpr bool kFollowed = false;
template <class Source>
constexpr bool kFollowed<Followed<Source>> = true;

#if defined(GITFAST_BF16_PRODUCTS)

struct Pairs : Terms<Bf16Pair> {
  // See Kernels::round_rows. `pairs` may begin where x does, if there is one row.
  static void round_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* pairs) {
    for (int64_t r = 0; r < rows; ++r) round_row(x + r * x_stride, k, pairs + r * rounded_words(k), kWidth);
  }

  // See Kernels::round_tiles.
  static void round_tiles(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* pairs) {
    for (int64_t r = 0; r < rows; ++r)
      round_row(x + r * x_stride, k, pairs + tile_row(r, rounded_words(k)), kTileWords);
  }

  // Where, in tiles of rows of so many words, the first 16 words of row r are; the next are kTileWords behind them.
  static int64_t tile_row(int64_t r, int64_t words) {
    return r / kTileSide * kTileSide * words + r % kTileSide * kTileSide;
  }

 private:
  // Vectors of 16 pairs are `step` words apart.
#if defined(__AVX512BF16__)
  static void round_row(const float* x, int64_t k, uint32_t* pairs, int64_t step) {
    constexpr int64_t kAtOnce = 2 * kWidth;
    static_assert(rounded_words(1) == kWidth, "rows end with a whole vector");
    int64_t i = 0;
    for (; i + kAtOnce <= k; i += kAtOnce, pairs += step)
      _mm512_storeu_si512(pairs, pack(load_vec(x + i), load_vec(x + i + kWidth)));
    if (const int64_t rest = k - i; rest > 0) {
      const F32x16 first = load_part(x + i, smaller(rest, kWidth));
      const F32x16 second = load_part(x + i + kWidth, larger(rest - kWidth, 0));
      _mm512_storeu_si512(pairs, pack(first.part[0], second.part[0]));
    }
  }

  static __m512i pack(Vec first, Vec second) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

 public:
  // 32 values as 16 pairs, in order.
  static void store_pairs(uint32_t* pairs, const F32x16& first, const F32x16& second) {
    _mm512_storeu_si512(pairs, pack(first.part[0], second.part[0]));
  }
#else
  static void round_row(const float* x, int64_t k, uint32_t* pairs, int64_t step) {
    constexpr int64_t kAtOnce = 2 * kLanes;
    for (int64_t i = 0; i < 2 * rounded_words(k); i += kAtOnce) {
      float last[kAtOnce] = {};
      const float* from = x + i;
      if (k - i < kAtOnce) {
        for (int64_t j = i; j < k; ++j) last[j - i] = x[j];
        from = last;
      }
      uint32_t* vector = pairs + i / (2 * kWidth) * step;
      store_vec(vector + i / 2 % kWidth, round_pairs(load_vec(from), load_vec(from + kLanes)));
    }
  }

 public:
  // Two vectors of floats as pairs of bfloat16, in order.
  static Vec round_pairs(Vec first, Vec second) {
    return vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), second));
  }
  static void store_pairs(uint32_t* pairs, const F32x16& first, const F32x16& second) {
    for (int i = 0; i < kParts; i += 2) {
      store_vec(pairs + i / 2 * kLanes, round_pairs(first.part[i], first.part[i + 1]));
      store_vec(pairs + (kParts + i) / 2 * kLanes, round_pairs(second.part[i], second.part[i + 1]));
    }
  }
#endif
};

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

struct Int8AsPairs {
  using Term = Bf16Pair;
  using Word = uint32_t;
  static constexpr int kTerms = 2;
  static void load(const uint32_t* words, Vec* x) {
    const auto row = [](const uint8_t* bytes) { return _mm512_load_si512(bytes); };
    const __m512i w = _mm512_loadu_si512(words);
    const __m512i size = _mm512_abs_epi8(w);
    const __m512i low = _mm512_permutex2var_epi8(row(kWholeNumbers.low), size, row(kWholeNumbers.low + 64));
    const __m512i high = _mm512_permutex2var_epi8(row(kWholeNumbers.high), size, row(kWholeNumbers.high + 64));
    const __m512i sign_bit = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i with_sign = _mm512_ternarylogic_epi32(w, sign_bit, high, 0xea);  // w & sign_bit | high
    x[0] = (Vec)_mm512_unpacklo_epi8(low, with_sign);
    x[1] = (Vec)_mm512_unpackhi_epi8(low, with_sign);
  }
};

#else

struct Int8AsPairs {
  using Term = Bf16Pair;
  using Word = uint32_t;
  static constexpr int kTerms = 2;
  static void load(const uint32_t* words, Vec* x) {
    const int8x16_t w = vreinterpretq_s8_u32(vld1q_u32(words));
    x[0] = widen(vmovl_s8(vget_low_s8(w)));
    x[1] = widen(vmovl_s8(vget_high_s8(w)));
  }

 private:
  // Eight whole numbers, two terms of each of four columns.
  static Vec widen(int16x8_t x) {
    return Pairs::round_pairs(vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(x))));
  }
};

#endif

// The source of a product's right side, by the format of its weights.
using Bf16Weights = Pairs;
using Int8Weights = Int8AsPairs;
using ShortTerms = Pairs;  // either of them, widened

#else

// The lanes of one vector in another order; clang knows no __builtin_shuffle, and GCC 11 no __builtin_shufflevector.
#if defined(__clang__)
#define GITFAST_SHUFFLE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define GITFAST_SHUFFLE(x, ...) __builtin_shuffle(x, decltype(x){__VA_ARGS__})
#endif

typedef uint16_t VecHalves __attribute__((vector_size(kLanes * 4)));

struct Bf16AsFloats {
  using Term = float;
  using Word = uint32_t;
  static constexpr int kTerms = 2;
  static void load(const uint32_t* words, Vec* x) {
    const VecBits pair = (VecBits)load_vec(words);
    x[0] = (Vec)(pair << 16);
    x[1] = (Vec)(pair & 0xffff0000u);
  }
};

struct Int8AsFloats {
  using Term = float;
  using Word = uint32_t;
  static constexpr int kTerms = 4;
  static void load(const uint32_t* words, Vec* x) {
    const VecInts word = terms_of_columns((VecHalves)load_vec(words));
    x[0] = __builtin_convertvector(word << 24 >> 24, Vec);
    x[1] = __builtin_convertvector(word << 16 >> 24, Vec);
    x[2] = __builtin_convertvector(word << 8 >> 24, Vec);
    x[3] = __builtin_convertvector(word >> 24, Vec);
  }

 private:
  // The four terms of each column as the bytes of one word; stored are, per 4 columns, two terms of each and then two.
  static VecInts terms_of_columns(VecHalves x) {
#if defined(__AVX512F__)
    return (VecInts)GITFAST_SHUFFLE(x, 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15, 16, 20, 17, 21, 18, 22, 19,
                                    23, 24, 28, 25, 29, 26, 30, 27, 31);
#elif defined(__AVX2__)
    return (VecInts)GITFAST_SHUFFLE(x, 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
#else
    return (VecInts)GITFAST_SHUFFLE(x, 0, 4, 1, 5, 2, 6, 3, 7);
#endif
  }
};

using Bf16Weights = Bf16AsFloats;
using Int8Weights = Int8AsFloats;
using ShortTerms = Floats;

#endif

#if defined(GITFAST_BYTE_PRODUCTS)
// The four terms of each column side by side; stored are, per 4 columns, two terms of each and then two. Where they are
// multiplied without a sign (x86), 128 is added to each.
struct Int8Quads {
  using Term = Int8Quad;
  using Word = uint32_t;
  static constexpr int kTerms = 1;
  static void load(const uint32_t* words, Vec* x) {
#if defined(GITFAST_NEON)
    constexpr uint8x16_t kOrder = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
    x[0] = vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(vld1q_u32(words)), kOrder));
#elif defined(__AVX512F__)
    const __m512i order = _mm512_set4_epi32(0x0f0e0706, 0x0d0c0504, 0x0b0a0302, 0x09080100);  // in each lane
    const __m512i quads = _mm512_shuffle_epi8(_mm512_loadu_si512(words), order);
    x[0] = (Vec)_mm512_xor_si512(quads, _mm512_set1_epi8(static_cast<char>(0x80)));
#else
    const __m256i order = _mm256_setr_epi32(0x09080100, 0x0b0a0302, 0x0d0c0504, 0x0f0e0706,  //
                                            0x09080100, 0x0b0a0302, 0x0d0c0504, 0x0f0e0706);
    const __m256i quads = _mm256_shuffle_epi8((__m256i)load_vec(words), order);
    x[0] = (Vec)_mm256_xor_si256(quads, _mm256_set1_epi8(static_cast<char>(0x80)));
#endif
  }
};
#endif

#if defined(GITFAST_INT8_PRODUCTS) && !defined(GITFAST_NEON)
using Int16Pairs = Terms<Int16Pair>;

struct Int8AsInt16 {
  using Term = Int16Pair;
  using Word = uint32_t;
  static constexpr int kTerms = 2;
  // A byte twice, shifted right as an int16, is its int16.
  static void load(const uint32_t* words, Vec* x) {
#if defined(__AVX512F__)
    const __m512i w = _mm512_loadu_si512(words);
    x[0] = (Vec)_mm512_srai_epi16(_mm512_unpacklo_epi8(w, w), 8);
    x[1] = (Vec)_mm512_srai_epi16(_mm512_unpackhi_epi8(w, w), 8);
#else
    const __m256i w = (__m256i)load_vec(words);
    x[0] = (Vec)_mm256_srai_epi16(_mm256_unpacklo_epi8(w, w), 8);
    x[1] = (Vec)_mm256_srai_epi16(_mm256_unpackhi_epi8(w, w), 8);
#endif
  }
};
#endif

// `rows` rows of a panel, kPanel words each, as kTerms times as many rows of terms.
template <class Source>
void widen(const typename Source::Word* from, int64_t rows, typename Source::Term* to) {
  for (int64_t row = 0; row < rows; ++row, from += kPanel, to += Source::kTerms * kPanel)
    for (int64_t i = 0; i < kPanel; i += kLanes) {
      Vec x[Source::kTerms];
      Source::load(from + i, x);
#pragma GCC unroll 4
      for (int t = 0; t < Source::kTerms; ++t) store_vec(to + t * kPanel + i, x[t]);
    }
}

#if defined(GITFAST_BF16_PRODUCTS)
constexpr auto kRoundRows = Pairs::round_rows;
constexpr auto kRoundTiles = Pairs::round_tiles;
#else
constexpr Kernels::Rounding kRoundRows = nullptr;
#endif

}  // namespace
}  // namespace gitfast::cpu
