// Keys and values packed for attention, and unpacked.
#include "prefix.h"

#include <cstring>

namespace gitfast::cpu {
namespace {

// Element i of a row of words `step` apart.
float element(const void* words, int64_t step, int64_t i, WeightFormat format) {
  const auto* from = static_cast<const uint32_t*>(words);
  uint32_t bits = from[i / terms_per_word(format) * step];
  if (format == WeightFormat::bf16) bits = i % 2 ? bits & 0xffff0000u : bits << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

void KeyValues::unpack(float* k, float* v) const {
  const int64_t block = packed_key_words(format, kKeyBlock, head_dim), width = packed_value_words(format, 1, head_dim);
  for (int64_t h = 0; h < heads; ++h) {
    const PackedHead packed = head(h);
    const auto *keys = static_cast<const uint32_t*>(packed.keys), *values = static_cast<const uint32_t*>(packed.values);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t d = 0; d < head_dim; ++d) {
        *k++ = element(keys + t / kKeyBlock * block + t % kKeyBlock, kKeyBlock, d, format);
        *v++ = element(values + d, width, t, format);
      }
  }
}

}  // namespace gitfast::cpu
