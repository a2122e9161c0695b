// Attention among image tokens.
#include "self_attention.h"

#include <algorithm>
#include <cmath>

namespace gitfast::cpu {

void store_keys_values(const Compute& compute, const float* k, const float* v, int64_t stride,
                       const std::vector<KeyValues*>& groups) {
  const int64_t heads = groups[0]->heads, tokens = groups[0]->tokens, hd = groups[0]->head_dim;
  compute.parallel(static_cast<int64_t>(groups.size()) * heads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / heads, head = i % heads;
      const int64_t offset = group * tokens * stride + head * hd;
      groups[static_cast<size_t>(group)]->pack(compute.kernels, head, k + offset, v + offset, stride);
    }
  });
}

void self_attention(const Compute& compute, const float* q, int64_t stride, const std::vector<KeyValues*>& groups,
                    float* out) {
  constexpr int64_t kRowsPerPart = 64;  // heads alone would leave threads idle
  const int64_t heads = groups[0]->heads, tokens = groups[0]->tokens, hd = groups[0]->head_dim;
  const int64_t parts = (tokens + kRowsPerPart - 1) / kRowsPerPart;
  const int64_t scratch_floats = attention_scratch_floats(hd, tokens, 0);
  Buffer scratch = float_buffer(scratch_floats * compute.pool.num_threads());
  const int64_t units = static_cast<int64_t>(groups.size()) * heads * parts;
  const auto attend = [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / (heads * parts), head = i / parts % heads, row = i % parts * kRowsPerPart;
      AttentionArgs args;
      args.q = q + (group * tokens + row) * stride + head * hd;
      args.q_stride = stride;
      args.rows = std::min(kRowsPerPart, tokens - row);
      args.head_dim = hd;
      args.scale = 1.f / std::sqrt(static_cast<float>(hd));
      args.prefix = groups[static_cast<size_t>(group)]->head(head);
      args.out = out + (group * tokens + row) * heads * hd + head * hd;
      args.out_stride = heads * hd;
      args.scratch = scratch.floats() + thread * scratch_floats;
      compute.kernels.attention(args);
    }
  };
  compute.parallel(units, 1, attend, Compute::kPiecesOfManyRows);
}

}  // namespace gitfast::cpu
