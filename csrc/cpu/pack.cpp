// The parts of the kernels other than arithmetic: the choice of table, scratch sizes, and weight packing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernel_tables.h"
#include "kernels.h"
#include "tensor.h"

namespace gitfast::cpu {

const Kernels& kernels_for(Isa isa) {
  for (Isa available : available_isas()) {
    if (available != isa) continue;
#if defined(__x86_64__)
    if (isa == Isa::avx2) return kAvx2Kernels;
    if (isa == Isa::avx2_vnni) return kAvx2VnniKernels;
    if (isa == Isa::avx512) return kAvx512Kernels;
    if (isa == Isa::avx512_vnni) return kAvx512VnniKernels;
    if (isa == Isa::avx512_bf16) return kAvx512Bf16Kernels;
    if (isa == Isa::avx512_bf16_vnni) return kAvx512Bf16VnniKernels;
    if (isa == Isa::amx) return kAmxKernels;
#elif defined(__aarch64__)
    if (isa == Isa::neon) return kNeonKernels;
    if (isa == Isa::neon_dot) return kNeonDotKernels;
    if (isa == Isa::neon_bf16) return kNeonBf16Kernels;
#endif
    return kScalarKernels;
  }
  throw Error(std::string("isa: this machine cannot run ") + isa_name(isa));
}

namespace {

int64_t words_of(WeightFormat format, int64_t terms) {
  const int64_t per_word = terms_per_word(format);
  return (terms + per_word - 1) / per_word;
}

}  // namespace

int64_t packed_key_words(WeightFormat format, int64_t tokens, int64_t head_dim) {
  return (tokens + kKeyBlock - 1) / kKeyBlock * kKeyBlock * words_of(format, head_dim);
}

int64_t packed_value_words(WeightFormat format, int64_t tokens, int64_t head_dim) {
  return words_of(format, tokens) * ((head_dim + 15) / 16 * 16);
}

int64_t attention_scratch_floats(int64_t head_dim, int64_t prefix_len, int64_t max_text_len) {
  const auto blocks = [](int64_t keys) { return (keys + kKeyBlock - 1) / kKeyBlock; };
  // An odd number of blocks: rows at a stride of a power of two would meet in a few sets of the cache.
  const int64_t scores = kKeyBlock * ((blocks(prefix_len) + blocks(max_text_len)) | 1);
  return kAttentionRows * (scores + rounded_words(head_dim));
}

namespace {

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  uint32_t mantissa = h & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;  // zero and denormals
    uint32_t magnitude;
    std::memcpy(&magnitude, &value, 4);
    bits = sign | magnitude;
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t float_to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // NaN stays one
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Columns [lane, lane + width) of one panel: rows of `values` (width, K).
struct Columns {
  const float* values;
  int64_t lane, width, k;
};

void pack_f32(const Columns& c, uint32_t* panel) {
  for (int64_t i = 0; i < c.k; ++i)
    for (int64_t j = 0; j < c.width; ++j) std::memcpy(panel + i * kPanel + c.lane + j, c.values + j * c.k + i, 4);
}

void pack_bf16(const Columns& c, uint32_t* panel) {
  for (int64_t i = 0; i < c.k; i += 2)
    for (int64_t j = 0; j < c.width; ++j) {
      const float* at = c.values + j * c.k + i;
      const uint32_t second = i + 1 < c.k ? float_to_bf16(at[1]) : 0u;
      panel[i / 2 * kPanel + c.lane + j] = float_to_bf16(at[0]) | second << 16;
    }
}

// Every column divided by its scale and rounded, in place: whole numbers of at most 127.
void quantize(const Columns& c, float* values, float* scales) {
  constexpr float kRound = 0x1.8p23f;  // adding it drops the fraction
  for (int64_t j = 0; j < c.width; ++j) {
    float* column = values + j * c.k;
    float largest = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < c.k; ++i) {
      largest = std::max(largest, std::abs(column[i]));
      finite = finite && std::isfinite(column[i]);
    }
    if (!finite) throw Error("int8: expected finite weights, got one that is not");
    scales[j] = largest / 127.0f;
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;  // smaller ones would divide to infinity
    for (int64_t i = 0; i < c.k; ++i)
      column[i] = std::min(std::max((column[i] * inverse + kRound) - kRound, -127.0f), 127.0f);
  }
}

// The offset in a panel of the byte of a column's term i: see PackedLinear.
int64_t int8_place(int64_t column, int64_t i) {
  const int64_t block = i / 4 * (kPanel / 16) + column / 16;
  return block * 64 + column % 16 / 4 * 16 + i % 4 / 2 * 8 + column % 4 * 2 + i % 2;
}

void pack_int8(const Columns& c, uint32_t* panel) {
  auto* bytes = reinterpret_cast<int8_t*>(panel);
  for (int64_t i = 0; i < c.k; ++i)
    for (int64_t j = 0; j < c.width; ++j) bytes[int8_place(c.lane + j, i)] = static_cast<int8_t>(c.values[j * c.k + i]);
}

}  // namespace

void to_floats(const void* source, bool is_f16, int64_t n, float* out) {
  if (!is_f16) {
    std::memcpy(out, source, static_cast<size_t>(n) * 4);
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(source);
  for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(halves[i]);
}

void to_bf16(const float* source, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = float_to_bf16(source[i]);
}

void pack_linear_rows(const void* w, bool is_f16, int64_t rows, int64_t k, int64_t n_offset, WeightFormat format,
                      void* panels, float* scales) {
  const int64_t panel_words = PackedLinear{0, k, format}.panel_words();
  std::vector<float> wide(static_cast<size_t>(kPanel * k));
  // Columns of a panel are packed together, so that every cache line of the panel is written once.
  for (int64_t row = 0; row < rows;) {
    const int64_t column = n_offset + row;
    const int64_t lane = column % kPanel;
    const int64_t width = std::min(kPanel - lane, rows - row);
    const auto* bytes = static_cast<const char*>(w) + row * k * (is_f16 ? 2 : 4);
    to_floats(bytes, is_f16, width * k, wide.data());
    uint32_t* panel = static_cast<uint32_t*>(panels) + column / kPanel * panel_words;
    const Columns columns{wide.data(), lane, width, k};
    if (format == WeightFormat::f32) {
      pack_f32(columns, panel);
    } else if (format == WeightFormat::bf16) {
      pack_bf16(columns, panel);
    } else {
      quantize(columns, wide.data(), scales + column);
      pack_int8(columns, panel);
    }
    row += width;
  }
}

void unpack_panel(const PackedLinear& w, int64_t panel, float* columns) {
  const auto* words = static_cast<const uint32_t*>(w.panels) + panel * w.panel_words();
  const auto* bytes = reinterpret_cast<const int8_t*>(words);
  for (int64_t j = 0; j < std::min(kPanel, w.n - panel * kPanel); ++j)
    for (int64_t i = 0; i < w.k; ++i) {
      float& value = columns[j * w.k + i];
      if (is_int8(w.format)) {
        value = bytes[int8_place(j, i)] * w.scales[panel * kPanel + j];
        continue;
      }
      uint32_t bits = words[i / terms_per_word(w.format) * kPanel + j];
      if (w.format == WeightFormat::bf16) bits = i % 2 ? bits & 0xffff0000u : bits << 16;
      std::memcpy(&value, &bits, 4);
    }
}

}  // namespace gitfast::cpu
