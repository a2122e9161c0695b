// x as the whole numbers that weights of int8 are multiplied with, for every kSumBlock values of a row in units of
// their own. Sums of products over a block are exact, whatever their order.
//
// Weights of int8 meet whole numbers of 14 bits (ARM: two rows of int8, 256 * high + low) or 15 bits (x86: one row of
// int16), in units of a power of two: within 2^-10 or 2^-11 of the block's norm, where bfloat16 is within 2^-8 of every
// value. Weights of w8a8 meet whole numbers of 8 bits, 127 units being the block's largest value.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

#if defined(GITFAST_INT8_PRODUCTS) || defined(GITFAST_BYTE_PRODUCTS)

namespace gitfast::cpu {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

constexpr uint32_t kInfiniteExponent = 255, kNan = 0x7fc00000u;

// The bits of the largest magnitude of n values, a multiple of kWidth.
inline uint32_t largest_bits(const float* x, int64_t n) {
#if defined(GITFAST_NEON)
  uint32x4_t largest = vdupq_n_u32(0);
  for (int64_t i = 0; i < n; i += 4) largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
  return vmaxvq_u32(largest);
#else
  VecInts largest = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecInts bits = (VecInts)abs(load_vec(x + i));
    largest = bits > largest ? bits : largest;
  }
  int32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result = larger(result, largest[i]);
  return static_cast<uint32_t>(result);
#endif
}

// The int32 sums of one vector of columns, in units of `size`.
inline F32x16 in_units(const float* sums, float size) {
  return each_part([&](int i) { return __builtin_convertvector((VecInts)load_vec(sums + i * kLanes), Vec) * size; });
}

// A way to hand rows of x over: each is kRows rows of words of Term, kBlockWords for a block, the next block of it
// kBlockStride behind them. quantize_block makes the first n values of one block, a multiple of kWidth; rows of the
// same x are row_words apart. sums is what the int32 sums of a block stand for, those of its other row `next` behind
// them.

#if defined(GITFAST_INT8_PRODUCTS)

// Units in which a block is whole numbers of at most 2^(kBits + 1), given the bits of its largest magnitude.
template <uint32_t kBits>
struct PowerOfTwo {
  float size, inverse;
  explicit PowerOfTwo(uint32_t largest) {
    constexpr uint32_t kSmallest = 27;  // exponents; smaller blocks round to zero
    const uint32_t exponent = larger(largest >> 23, kSmallest);
    const bool infinite = exponent == kInfiniteExponent;
    size = float_of(infinite ? kNan : (exponent - kBits) << 23);
    inverse = float_of(infinite ? 0u : (254 + kBits - exponent) << 23);
  }
};

#if defined(GITFAST_NEON)

struct Wholes {
  using Term = Int8Quad;
  static constexpr int64_t kRows = 2, kBlockWords = kSumBlock / 4, kBlockStride = quantized_words(kSumBlock) / kRows;

  static void quantize_block(const float* x, int64_t n, uint32_t* words, int64_t row_words) {
    const PowerOfTwo<13> unit(largest_bits(x, n));
    for (int64_t i = 0; i < n; i += kWidth) store(x + i, unit.inverse, words + i / 4, row_words);
    words[kBlockWords] = bits_of(256.0f * unit.size);
    words[row_words + kBlockWords] = bits_of(unit.size);
  }

  static F32x16 sums(const float* whole, int64_t next, const uint32_t* units, int64_t row_words) {
    return in_units(whole, float_of(units[0])) + in_units(whole + next, float_of(units[row_words]));
  }

 private:
  // Sixteen values as whole numbers of the high row and of the low row.
  static void store(const float* x, float inverse, uint32_t* high, int64_t row_words) {
    const auto whole = [&](int i) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse)); };
    const int16x8_t a = vcombine_s16(vqmovn_s32(whole(0)), vqmovn_s32(whole(1)));
    const int16x8_t b = vcombine_s16(vqmovn_s32(whole(2)), vqmovn_s32(whole(3)));
    const int8x16_t upper = vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8));
    const int8x16_t lower = vcombine_s8(vmovn_s16(a), vmovn_s16(b));  // modulo 256: upper is rounded to nearest
    vst1q_s8(reinterpret_cast<int8_t*>(high), upper);
    vst1q_s8(reinterpret_cast<int8_t*>(high + row_words), lower);
  }
};

#else

struct Wholes {
  using Term = Int16Pair;
  static constexpr int64_t kRows = 1, kBlockWords = kSumBlock / 2, kBlockStride = quantized_words(kSumBlock);

  static void quantize_block(const float* x, int64_t n, uint32_t* words, int64_t) {
    const PowerOfTwo<14> unit(largest_bits(x, n));
    for (int64_t i = 0; i < n; i += kWidth) store(x + i, unit.inverse, words + i / 2);
    words[kBlockWords] = bits_of(unit.size);
  }

  static F32x16 sums(const float* whole, int64_t, const uint32_t* units, int64_t) {
    return in_units(whole, float_of(units[0]));
  }

 private:
  // Sixteen values as whole numbers; conversions saturate.
  static void store(const float* x, float inverse, uint32_t* to) {
#if defined(__AVX512F__)
    constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of what the forms without a mask leave undefined
    const __m512i whole = _mm512_maskz_cvtps_epi32(kAll, (__m512)(load_vec(x) * inverse));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtsepi32_epi16(kAll, whole));
#else
    const auto whole = [&](int i) { return _mm256_cvtps_epi32((__m256)(load_vec(x + i * kLanes) * inverse)); };
    const __m256i lanes = _mm256_packs_epi32(whole(0), whole(1));  // 0-3, 8-11, 4-7, 12-15
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(lanes, 0xd8));
#endif
  }
};

#endif
#endif

#if defined(GITFAST_BYTE_PRODUCTS)

struct Bytes {
  using Term = Int8Quad;
  static constexpr int64_t kRows = 1, kBlockWords = kSumBlock / 4, kBlockStride = kBlockWords + 2;
  static_assert(kBlockStride <= quantized_words(kSumBlock));

  static void quantize_block(const float* x, int64_t n, uint32_t* words, int64_t) {
    constexpr float kSmallest = 2e-36f;  // smaller blocks, whose units might not be normal numbers, are zero
    const uint32_t bits = largest_bits(x, n);
    if (bits >> 23 == kInfiniteExponent) {
      __builtin_memset(words, 0, kBlockStride * sizeof *words);
      words[kBlockWords] = kNan;
      return;
    }
    const float largest = float_of(bits), inverse = largest < kSmallest ? 0.0f : 127.0f / largest;
    words[kBlockWords] = bits_of(largest / 127.0f);
    words[kBlockWords + 1] = static_cast<uint32_t>(store(x, n, inverse, words));
  }

  static F32x16 sums(const float* whole, int64_t, const uint32_t* units, int64_t) {
    const auto correction = static_cast<int32_t>(units[1]);
    const float size = float_of(units[0]);
    return each_part(
        [&](int i) { return __builtin_convertvector((VecInts)load_vec(whole + i * kLanes) + correction, Vec) * size; });
  }

 private:
  // Stores the whole numbers of the block; returns what corrects its sums: 128 times the numbers' own sum is taken away
  // where the weights are multiplied as 128 more than they are (x86).
#if defined(GITFAST_NEON)
  static int32_t store(const float* x, int64_t n, float inverse, uint32_t* to) {
    for (int64_t i = 0; i < n; i += kWidth, to += kWidth / 4) {
      const auto whole = [&](int j) {
        return vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * j), inverse)));
      };
      const int16x8_t a = vcombine_s16(whole(0), whole(1)), b = vcombine_s16(whole(2), whole(3));
      vst1q_s8(reinterpret_cast<int8_t*>(to), vcombine_s8(vqmovn_s16(a), vqmovn_s16(b)));
    }
    return 0;
  }
#else
  static int32_t store(const float* x, int64_t n, float inverse, uint32_t* to) {
    VecInts total = {};
    for (int64_t i = 0; i < n; i += kWidth, to += kWidth / 4) {
#if defined(__AVX512F__)
      constexpr __mmask16 kAll = 0xffff;  // as in Wholes
      const __m512i whole = _mm512_maskz_cvtps_epi32(kAll, (__m512)(load_vec(x + i) * inverse));
      const __m128i bytes = _mm512_maskz_cvtsepi32_epi8(kAll, whole);
      total += (VecInts)whole;
#else
      const auto shorts = [&](int64_t j) {
        const __m256i whole = _mm256_cvtps_epi32((__m256)(load_vec(x + j) * inverse));
        total += (VecInts)whole;
        return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
      };
      const __m128i first = shorts(i), bytes = _mm_packs_epi16(first, shorts(i + kLanes));
#endif
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    }
    int32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += total[i];
    return -128 * sum;
  }
#endif
};

#endif

// See Kernels::quantize_rows.
template <class Kind>
void quantize_as(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* out) {
  const int64_t row_words = quantized_words(k) / Kind::kRows;
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    uint32_t* words = out + r * Kind::kRows * row_words;
    for (int64_t i = 0; i < k; i += kSumBlock, words += Kind::kBlockStride) {
      float last[kSumBlock];
      const float* block = x + i;
      const int64_t n = smaller(kSumBlock, k - i), whole = ceil_div(n, kWidth) * kWidth;
      if (n < whole) {
        for (int64_t j = 0; j < n; ++j) last[j] = block[j];
        for (int64_t j = n; j < whole; ++j) last[j] = 0.0f;
        block = last;
      }
      Kind::quantize_block(block, whole, words, row_words);
    }
  }
}

#if defined(GITFAST_INT8_PRODUCTS)
constexpr auto quantize_rows = quantize_as<Wholes>;
#endif
#if defined(GITFAST_BYTE_PRODUCTS)
constexpr auto quantize_rows_to_bytes = quantize_as<Bytes>;
#endif

}  // namespace
}  // namespace gitfast::cpu

#endif
