// Keys and values in the layout that attention reads, and the prefix: those of one image in every decoder layer.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace gitfast::cpu {

// Keys and values of all heads for one run of tokens, float32 or bfloat16.
class KeyValues {
 public:
  KeyValues(int64_t heads, int64_t tokens, int64_t head_dim, WeightFormat format)
      : heads(heads),
        tokens(tokens),
        head_dim(head_dim),
        format(format),
        keys_(static_cast<size_t>(heads * key_words()) * sizeof(uint32_t)),
        values_(static_cast<size_t>(heads * value_words()) * sizeof(uint32_t)) {}

  // k and v are rows (tokens, head_dim) of row stride `stride`.
  void pack(const Kernels& kernels, int64_t head, const float* k, const float* v, int64_t stride) {
    kernels.pack_head(k, v, stride, tokens, head_dim, format, keys_.words() + head * key_words(),
                      values_.words() + head * value_words());
  }

  PackedHead head(int64_t head) const {
    return {format, keys_.words() + head * key_words(), values_.words() + head * value_words(), tokens};
  }

  // k and v (heads, tokens, head_dim)
  void unpack(float* k, float* v) const;

  size_t bytes() const { return keys_.bytes() + values_.bytes(); }

  const int64_t heads, tokens, head_dim;
  const WeightFormat format;

 private:
  int64_t key_words() const { return packed_key_words(format, tokens, head_dim); }
  int64_t value_words() const { return packed_value_words(format, tokens, head_dim); }

  Buffer keys_, values_;
};

// Computed once per image or clip; immutable when the engine hands it out, shared by any number of rows.
struct Prefix {
  uint64_t engine_id = 0;  // of the engine whose weights made it
  int64_t tokens = 0;      // P
  std::vector<KeyValues> layers;

  size_t bytes() const {
    size_t total = 0;
    for (const KeyValues& layer : layers) total += layer.bytes();
    return total;
  }
};

}  // namespace gitfast::cpu
