// Keys and values in the layout that attention reads, and the prefix: those of one image in every decoder layer.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace gitfast::cpu {

// Keys and values of all heads for one run of tokens.
class KeyValues {
 public:
  KeyValues(int64_t heads, int64_t tokens, int64_t head_dim)
      : heads(heads),
        tokens(tokens),
        head_dim(head_dim),
        keys_(static_cast<size_t>(heads * padded_tokens() * head_dim) * sizeof(float)),
        values_(static_cast<size_t>(heads * tokens * head_dim) * sizeof(float)) {}

  // [ceil(tokens / kKeyBlock)][head_dim][kKeyBlock]
  float* keys(int64_t head) { return keys_.floats() + head * padded_tokens() * head_dim; }
  const float* keys(int64_t head) const { return keys_.floats() + head * padded_tokens() * head_dim; }
  // (tokens, head_dim)
  float* values(int64_t head) { return values_.floats() + head * tokens * head_dim; }
  const float* values(int64_t head) const { return values_.floats() + head * tokens * head_dim; }

  size_t bytes() const { return keys_.bytes() + values_.bytes(); }

  const int64_t heads, tokens, head_dim;

 private:
  int64_t padded_tokens() const { return (tokens + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

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
