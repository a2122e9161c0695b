// linear of int8 weights where they are multiplied as whole numbers. x is rounded to whole numbers in units of a power
// of two for every kSumBlock values: on ARM to 14 bits of the block's largest, which are two rows of int8, 256 * high +
// low; on x86 to 15 bits, one row of int16. That is at most 2^-10 or 2^-11 of the block's norm, where bfloat16 is
// within 2^-9 of every value. Sums over a block are exact, whatever their order.
#pragma once

#include "activation-inl.h"
#include "pairs-inl.h"
#include "product-inl.h"

#if defined(GITFAST_INT8_PRODUCTS)

namespace gitfast::cpu {
namespace {

#if defined(GITFAST_NEON)
using Whole = Int8Quad;
constexpr int64_t kWholeRows = 2;  // of a row of x
constexpr uint32_t kUnitBits = 13;
#else
using Whole = Int16Pair;
constexpr int64_t kWholeRows = 1;
constexpr uint32_t kUnitBits = 14;
#endif
constexpr int64_t kWholesInWord = 2 * kWholeRows;
constexpr int64_t kBlockWords = kSumBlock / kWholesInWord;
constexpr int64_t kBlockStride = quantized_words(kSumBlock) / kWholeRows;  // words of a block, its unit behind them
static_assert(kBlockStride > kBlockWords);
constexpr int64_t kQuantizedRows = 204 / kWholeRows;  // rows whose sums wait together for the next block of k

// Units in which a block is whole numbers of at most 2^(kUnitBits + 1), given the bits of its largest magnitude.
struct Unit {
  float size, inverse;
  explicit Unit(uint32_t largest) {
    constexpr uint32_t kSmallest = 27, kInfinite = 255;  // exponents; smaller blocks round to zero
    const uint32_t exponent = larger(largest >> 23, kSmallest);
    const uint32_t bits = exponent == kInfinite ? 0x7fc00000u : (exponent - kUnitBits) << 23;
    const uint32_t inverse_bits = exponent == kInfinite ? 0u : (254 + kUnitBits - exponent) << 23;
    __builtin_memcpy(&size, &bits, 4);
    __builtin_memcpy(&inverse, &inverse_bits, 4);
  }
};

#if defined(GITFAST_NEON)

inline uint32_t largest_bits(const float* x, int64_t n) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int64_t i = 0; i < n; i += 4) largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
  return vmaxvq_u32(largest);
}

// Sixteen values as whole numbers of the high row and, `row_words` behind it, of the low row.
inline void store_wholes(const float* x, float inverse, uint32_t* high, int64_t row_words) {
  const auto whole = [&](int i) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse)); };
  const int16x8_t a = vcombine_s16(vqmovn_s32(whole(0)), vqmovn_s32(whole(1)));
  const int16x8_t b = vcombine_s16(vqmovn_s32(whole(2)), vqmovn_s32(whole(3)));
  const int8x16_t upper = vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8));
  const int8x16_t lower = vcombine_s8(vmovn_s16(a), vmovn_s16(b));  // modulo 256: upper is rounded to nearest
  vst1q_s8(reinterpret_cast<int8_t*>(high), upper);
  vst1q_s8(reinterpret_cast<int8_t*>(high + row_words), lower);
}

#else

inline uint32_t largest_bits(const float* x, int64_t n) {
  VecInts largest = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecInts bits = (VecInts)abs(load_vec(x + i));
    largest = bits > largest ? bits : largest;
  }
  int32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result = larger(result, largest[i]);
  return static_cast<uint32_t>(result);
}

// Sixteen values as whole numbers; conversions saturate.
inline void store_wholes(const float* x, float inverse, uint32_t* to, int64_t) {
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

#endif

// See Kernels::quantize_rows.
void quantize_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* out) {
  const int64_t row_words = quantized_words(k) / kWholeRows;
  for (int64_t r = 0; r < rows; ++r, x += x_stride, out += (kWholeRows - 1) * row_words)
    for (int64_t i = 0; i < k; i += kSumBlock, out += kBlockStride) {
      float last[kSumBlock];
      const float* block = x + i;
      const int64_t n = smaller(kSumBlock, k - i), whole = ceil_div(n, kWidth) * kWidth;
      if (n < whole) {
        for (int64_t j = 0; j < n; ++j) last[j] = block[j];
        for (int64_t j = n; j < whole; ++j) last[j] = 0.0f;
        block = last;
      }
      const Unit unit(largest_bits(block, whole));
      for (int64_t j = 0; j < whole; j += kWidth)
        store_wholes(block + j, unit.inverse, out + j / kWholesInWord, row_words);
      float size = unit.size;
      for (int64_t part = kWholeRows - 1; part >= 0; --part, size *= 256.0f)
        __builtin_memcpy(out + part * row_words + kBlockWords, &size, 4);
    }
}

// The int32 sums of one row and vector, in its units.
inline F32x16 in_units(const float* sums, uint32_t unit) {
  float size;
  __builtin_memcpy(&size, &unit, 4);
  return each_part([&](int i) { return __builtin_convertvector((VecInts)load_vec(sums + i * kLanes), Vec) * size; });
}

// As linear_block.
template <class Source, class Inner, int64_t kMaxRows, int64_t kMaxPanels>
void int8_block(const LinearArgs& args, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
  constexpr bool kPrepare = !std::is_same_v<Source, Inner>;
  constexpr int64_t kStride = kMaxPanels * kPanel, kPanelWords = kSumBlock / 4 * kPanel;
  alignas(64) float sums[kMaxRows * kStride], block[kWholeRows * kMaxRows * kStride];
  alignas(64) typename Inner::Word prepared[kPrepare ? kBlockWords / Inner::kTerms * kPanel : 1];
  const PackedLinear& w = *args.w;
  const auto* words = static_cast<const uint32_t*>(w.panels) + panel * w.panel_words();
  const int64_t row_words = quantized_words(w.k) / kWholeRows;
  const uint32_t* x = args.rounded + row * kWholeRows * row_words;
  Product<Inner> p = {};
  p.a_stride = row_words;
  p.step = kPanel;
  p.odd = kWidth;
  p.pair = w.panel_words();
  p.vectors = panels * (kPanel / kWidth);
  p.c = block;
  p.c_stride = kStride;
  const RowTiles tiles(kWholeRows * rows);
  for (int64_t k = 0; k < w.k; k += kSumBlock, words += kPanelWords, x += kBlockStride) {
    const int64_t n = smaller(kSumBlock, w.k - k);
    p.a = reinterpret_cast<const Whole*>(x);
    p.k = ceil_div(n, kWholesInWord);
    if constexpr (kPrepare) {
      prepare<Source, Inner>(words, ceil_div(n, 4), prepared);
      p.b = prepared;
    } else {
      p.b = words;
    }
    product_of_block(p, tiles, Ahead(w, words + kPanelWords, kPanelWords, tiles.count));
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t* units = x + kWholeRows * r * row_words + kBlockWords;
      for (int64_t v = 0; v < p.vectors; ++v) {
        const float* whole = block + kWholeRows * r * kStride + v * kWidth;
        F32x16 sum = in_units(whole, units[0]);
        if (kWholeRows == 2) sum = sum + in_units(whole + kStride, units[row_words]);
        float* to = sums + r * kStride + v * kWidth;
        store(to, k > 0 ? load(to) + sum : sum);
      }
    }
  }
  finish_panels<kStride>(args, sums, row, rows, panel, panels);
}

// Few rows read weights as they are, several panels side by side.
template <class Source, int64_t kMaxRows>
void linear_of_few_wholes(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t rows = kWholeRows * RowTiles(args.m, kTileRows / kWholeRows).height();
  const int64_t columns = kPaired<Source> ? kPanel : columns_at_once<Source>(static_cast<int>(rows)) * kWidth;
  const int64_t panels = larger(1, columns / kPanel);
  for (int64_t p = panel_begin; p < panel_end; p += panels)
    int8_block<Source, Source, kMaxRows, 4>(args, 0, args.m, p, smaller(panels, panel_end - p));
}

template <class Source, class Inner>
void linear_of_wholes(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  const int64_t blocks = ceil_div(args.m, kQuantizedRows);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = args.m * i / blocks;
    const int64_t rows = args.m * (i + 1) / blocks - row;
    for (int64_t p = panel_begin; p < panel_end; ++p)
      int8_block<Source, Inner, kQuantizedRows, 1>(args, row, rows, p, 1);
  }
}

void linear_of_int8(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
#if !defined(GITFAST_NEON)
  constexpr int64_t kFew = 2 * kTileRows;
  if (args.m <= kFew) return linear_of_few_wholes<Int8AsInt16, kFew>(args, panel_begin, panel_end);
  linear_of_wholes<Int8AsInt16, Cached<Int16Pairs>>(args, panel_begin, panel_end);
#else
  constexpr int64_t kFew = kTileRows / kWholeRows;
#if defined(GITFAST_PAIRED_PRODUCTS)
  // A single row takes as many instructions in units as by sdot.
  if (args.m > 1 && whole_units(*args.w)) {
    if (args.m <= kFew) return linear_of_few_wholes<Int8Units, kFew>(args, panel_begin, panel_end);
    return linear_of_wholes<Int8Units, Cached<Grouped<Int8Units>>>(args, panel_begin, panel_end);
  }
#endif
  if (args.m <= kFew) return linear_of_few_wholes<Int8Quads, kFew>(args, panel_begin, panel_end);
  linear_of_wholes<Int8Quads, Int8Quads>(args, panel_begin, panel_end);
#endif
}

}  // namespace
}  // namespace gitfast::cpu

#endif
