// What the kernels share that is not arithmetic: the choice of table, scratch sizes, and weight packing.
#include <algorithm>
#include <cstring>

#include "kernel_tables.h"
#include "kernels.h"
#include "tensor.h"

namespace gitfast::cpu {

const Kernels& kernels_for(Isa isa) {
  for (Isa available : available_isas()) {
    if (available != isa) continue;
#if defined(__x86_64__)
    if (isa == Isa::avx2) return kAvx2Kernels;
    if (isa == Isa::avx512) return kAvx512Kernels;
#endif
    return kScalarKernels;
  }
  throw Error(std::string("isa: this machine cannot run ") + isa_name(isa));
}

int64_t attention_scratch_floats(int64_t prefix_len, int64_t max_text_len) {
  const auto blocks = [](int64_t keys) { return (keys + kKeyBlock - 1) / kKeyBlock; };
  // An odd number of blocks: rows at a stride of a power of two would meet in a few sets of the cache.
  return kAttentionRows * kKeyBlock * ((blocks(prefix_len) + blocks(max_text_len)) | 1);
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

}  // namespace

void to_floats(const void* source, bool is_f16, int64_t n, float* out) {
  if (!is_f16) {
    std::memcpy(out, source, static_cast<size_t>(n) * 4);
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(source);
  for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(halves[i]);
}

void pack_linear_rows(const void* w, bool is_f16, int64_t rows, int64_t k, int64_t n_offset, float* panels) {
  const auto* floats = static_cast<const float*>(w);
  const auto* halves = static_cast<const uint16_t*>(w);
  // Columns of a panel are packed together, so that every cache line of the panel is written once.
  for (int64_t row = 0; row < rows;) {
    const int64_t column = n_offset + row;
    const int64_t lane = column % kPanel;
    const int64_t width = std::min(kPanel - lane, rows - row);
    float* panel = panels + column / kPanel * k * kPanel + lane;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const int64_t at = (row + j) * k + i;
        panel[i * kPanel + j] = is_f16 ? half_to_float(halves[at]) : floats[at];
      }
    row += width;
  }
}

}  // namespace gitfast::cpu
