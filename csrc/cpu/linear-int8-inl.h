// linear of int8 weights where the instruction set multiplies int8 by int8: four products and their sum in a lane.
// Rows of x are two int8 each, 256 * high + low, in units of a power of two for every kSumBlock values: x is rounded to
// 14 bits of the block's largest, at most 2^-10 of the block's norm, where bfloat16 is within 2^-9 of every value.
#pragma once

#include "activation-inl.h"
#include "pairs-inl.h"
#include "product-inl.h"

#if defined(GITFAST_INT8_PRODUCTS)

namespace gitfast::cpu {
namespace {

constexpr int64_t kQuads = kSumBlock / 4;                   // words of a block
constexpr int64_t kQuadRow = kQuads + 1;                    // and its scale
static_assert(quantized_words(kSumBlock) == 2 * kQuadRow);  // high and low
constexpr int64_t kQuantizedRows = 102;                     // rows whose sums wait together for the next block of k

// Units in which a block is whole numbers below 2^14, given the bits of its largest magnitude.
struct Unit {
  float size, inverse;
  explicit Unit(uint32_t largest) {
    constexpr uint32_t kSmallest = 27, kInfinite = 255, kBits = 13;  // exponents; smaller blocks round to zero
    const uint32_t exponent = larger(largest >> 23, kSmallest);
    const uint32_t bits = exponent == kInfinite ? 0x7fc00000u : (exponent - kBits) << 23;
    const uint32_t inverse_bits = exponent == kInfinite ? 0u : (254 + kBits - exponent) << 23;
    __builtin_memcpy(&size, &bits, 4);
    __builtin_memcpy(&inverse, &inverse_bits, 4);
  }
};

// Sixteen values as whole numbers, those of the high row and those of the low row.
inline void split(const float* x, float inverse, int8_t* high, int8_t* low) {
  const auto whole = [&](int i) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse)); };
  const int16x8_t a = vcombine_s16(vqmovn_s32(whole(0)), vqmovn_s32(whole(1)));
  const int16x8_t b = vcombine_s16(vqmovn_s32(whole(2)), vqmovn_s32(whole(3)));
  const int8x16_t upper = vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8));
  const int8x16_t lower = vcombine_s8(vmovn_s16(a), vmovn_s16(b));  // modulo 256: upper is rounded to nearest
  vst1q_s8(high, upper);
  vst1q_s8(low, lower);
}

// See Kernels::quantize_rows.
void quantize_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* out) {
  const int64_t row_words = quantized_words(k) / 2;
  for (int64_t r = 0; r < rows; ++r, x += x_stride, out += row_words)
    for (int64_t i = 0; i < k; i += kSumBlock, out += kQuadRow) {
      float last[kSumBlock];
      const float* block = x + i;
      const int64_t n = smaller(kSumBlock, k - i), whole = ceil_div(n, kWidth) * kWidth;
      if (n < whole) {
        for (int64_t j = 0; j < n; ++j) last[j] = block[j];
        for (int64_t j = n; j < whole; ++j) last[j] = 0.0f;
        block = last;
      }
      uint32x4_t largest = vdupq_n_u32(0);
      for (int64_t j = 0; j < whole; j += 4)
        largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(block + j))));
      const Unit unit(vmaxvq_u32(largest));
      auto* high = reinterpret_cast<int8_t*>(out);
      auto* low = reinterpret_cast<int8_t*>(out + row_words);
      for (int64_t j = 0; j < whole; j += kWidth) split(block + j, unit.inverse, high + j, low + j);
      const float high_unit = unit.size * 256.0f;
      __builtin_memcpy(out + kQuads, &high_unit, 4);
      __builtin_memcpy(out + row_words + kQuads, &unit.size, 4);
    }
}

// The int32 sums of one row and vector, in its units.
inline F32x16 in_units(const float* sums, uint32_t unit) {
  float size;
  __builtin_memcpy(&size, &unit, 4);
  return each_part(
      [&](int i) { return vmulq_n_f32(vcvtq_f32_s32(vreinterpretq_s32_f32(load_vec(sums + i * kLanes))), size); });
}

// Rows [row, row + rows) of the panels [panel, panel + panels). Sums of int32 are exact: at most 2^23.
template <class Source, int64_t kMaxRows, int64_t kMaxPanels>
void int8_block(const LinearArgs& args, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
  constexpr bool kGroup = kPaired<Source> && 2 * kMaxRows > kTileRows;
  using Inner = std::conditional_t<kGroup, Grouped<Source>, Source>;
  constexpr int64_t kStride = kMaxPanels * kPanel;
  alignas(64) float sums[kMaxRows * kStride], block[2 * kMaxRows * kStride];
  alignas(64) uint32_t grouped[kGroup ? kQuads * kPanel : 1];
  const PackedLinear& w = *args.w;
  const auto* words = static_cast<const uint32_t*>(w.panels) + panel * w.panel_words();
  const int64_t row_words = quantized_words(w.k) / 2;
  const uint32_t* x = args.rounded + row * 2 * row_words;
  Product<Inner> p = {};
  p.a_stride = row_words;
  p.step = kPanel;
  p.odd = kWidth;
  p.pair = w.panel_words();
  p.vectors = panels * (kPanel / kWidth);
  p.c = block;
  p.c_stride = kStride;
  p.cached = kGroup;
  for (int64_t k = 0; k < w.k; k += kSumBlock, words += kQuads * kPanel, x += kQuadRow) {
    p.a = reinterpret_cast<const Int8Quad*>(x);
    p.b = words;
    p.k = ceil_div(smaller(kSumBlock, w.k - k), 4);
    if constexpr (kGroup) {
      group<Source>(words, p.k, grouped);
      p.b = grouped;
    }
    product_of_block(p, 2 * rows);
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t* units = x + 2 * r * row_words + kQuads;
      for (int64_t v = 0; v < p.vectors; ++v) {
        const float* high = block + 2 * r * kStride + v * kWidth;
        const F32x16 sum = in_units(high, units[0]) + in_units(high + kStride, units[row_words]);
        float* to = sums + r * kStride + v * kWidth;
        store(to, k > 0 ? load(to) + sum : sum);
      }
    }
  }
  finish_panels<kStride>(args, sums, row, rows, panel, panels);
}

template <class Source>
void linear_of_quantized(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (2 * args.m <= kTileRows) {  // the weights are read once, several panels side by side
    const int64_t columns = kPaired<Source> ? kPanel : columns_at_once<Source>(static_cast<int>(2 * args.m)) * kWidth;
    const int64_t panels = larger(1, columns / kPanel);
    for (int64_t p = panel_begin; p < panel_end; p += panels)
      int8_block<Source, kTileRows / 2, 4>(args, 0, args.m, p, smaller(panels, panel_end - p));
    return;
  }
  const int64_t blocks = ceil_div(args.m, kQuantizedRows);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = args.m * i / blocks;
    const int64_t rows = args.m * (i + 1) / blocks - row;
    for (int64_t p = panel_begin; p < panel_end; ++p) int8_block<Source, kQuantizedRows, 1>(args, row, rows, p, 1);
  }
}

void linear_of_int8(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
#if defined(GITFAST_PAIRED_PRODUCTS)
  // A single row takes as many instructions in units as by sdot.
  if (args.m > 1 && whole_units(*args.w)) return linear_of_quantized<Int8Units>(args, panel_begin, panel_end);
#endif
  linear_of_quantized<Int8Quads>(args, panel_begin, panel_end);
}

}  // namespace
}  // namespace gitfast::cpu

#endif
