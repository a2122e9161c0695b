// Attention among image tokens, in the vision transformer and in the decoder: every token of a group (one frame, or
// one image) sees all tokens of its group and nothing else.
#pragma once

#include <vector>

#include "compute.h"
#include "prefix.h"

namespace gitfast::cpu {

// A fused product (groups * tokens, stride) holds the groups' queries, keys and values; each points at its first row.
// Keys and values go into `groups`, which all have the same shape.
void store_keys_values(const Compute& compute, const float* k, const float* v, int64_t stride,
                       const std::vector<KeyValues*>& groups);

// out (groups * tokens, heads * head_dim), dense.
void self_attention(const Compute& compute, const float* q, int64_t stride, const std::vector<KeyValues*>& groups,
                    float* out);

}  // namespace gitfast::cpu
