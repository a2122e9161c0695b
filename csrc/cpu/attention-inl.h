// attention: rows of one head over a shared prefix and each row's own text, one softmax over both.
#pragma once

#include "product-inl.h"

namespace gitfast::cpu {
namespace {

static_assert(kKeyBlock == kWidth, "one key block is one vector of scores");
static_assert(kTileRows <= kAttentionRows, "the scratch holds the scores of one tile of rows");

constexpr int64_t kValueColumns = 64;  // columns of V that are summed together

// One tile of rows: its scores lie in `scores`, (rows, stride), first the prefix, then the text from `text_at` on.
struct AttentionTile {
  const AttentionArgs& args;
  int64_t row;
  int64_t rows;
  float* scores;
  int64_t text_at;
  int64_t stride;

  float* scores_of(int64_t r) const { return scores + r * stride; }
  int64_t text_len(int64_t r) const { return args.slots ? args.text_len[row + r] : 0; }
};

// [C] = A B over all of k, in blocks of kSumBlock.
inline void product_in_blocks(Product<Floats> p, int64_t rows, int64_t a_step, int64_t depth) {
  const float* a = p.a;
  const float* b = p.b;
  for (int64_t k = 0; k < depth; k += kSumBlock) {
    p.a = a + k * a_step;
    p.b = b + k * p.step;
    p.k = smaller(kSumBlock, depth - k);
    p.add = k > 0;
    product_of_rows(p, rows);
  }
}

inline void prefix_scores(const AttentionTile& t) {
  const AttentionArgs& args = t.args;
  Product<Floats> p = {};
  p.a = args.q + t.row * args.q_stride;
  p.a_stride = args.q_stride;
  p.b = args.k_prefix;
  p.step = kKeyBlock;
  p.odd = args.head_dim * kKeyBlock;
  p.pair = 2 * p.odd;
  p.vectors = ceil_div(args.prefix_len, kKeyBlock);
  p.c = t.scores;
  p.c_stride = t.stride;
  product_in_blocks(p, t.rows, 1, args.head_dim);
}

inline float dot(const float* x, const float* y, int64_t n) {
  F32x16 sum = {};
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) sum = fma(load(x + i), load(y + i), sum);
  if (i < n) sum = fma(load_part(x + i, n - i), load_part(y + i, n - i), sum);
  return sum_lanes(sum);
}

inline void text_scores(const AttentionTile& t, int64_t r) {
  const AttentionArgs& args = t.args;
  const float* q = args.q + (t.row + r) * args.q_stride;
  float* scores = t.scores_of(r) + t.text_at;
  for (int64_t i = 0; i < t.text_len(r); ++i)
    scores[i] = dot(q, args.k_text + args.slots[t.row + r][i] * args.text_stride, args.head_dim);
}

// Fills the lanes from n to the end of its vector, so that whole vectors can be read and no key is invented.
inline void mask_tail(float* scores, int64_t n) {
  for (int64_t i = n; i % kWidth != 0; ++i) scores[i] = -__builtin_inff();
}

inline F32x16 max_of(const float* scores, int64_t n, F32x16 top) {
  for (int64_t i = 0; i < n; i += kWidth) top = max(top, load(scores + i));
  return top;
}

// Turns scores into exp(scale * score - peak), in place.
inline F32x16 exponentials(float* scores, int64_t n, float scale, float peak, F32x16 sum) {
  const F32x16 s = splat16(scale), m = splat16(-peak);
  for (int64_t i = 0; i < n; i += kWidth) {
    const F32x16 e = map(fma(load(scores + i), s, m), exp_nonpositive);
    store(scores + i, e);
    sum = sum + e;
  }
  return sum;
}

// The scores of one row become softmax numerators; returns their sum (1 where the row sees no key: its output is 0).
inline float softmax_numerators(const AttentionTile& t, int64_t r) {
  float* prefix = t.scores_of(r);
  float* text = prefix + t.text_at;
  const int64_t prefix_len = t.args.prefix_len, text_len = t.text_len(r);
  if (prefix_len + text_len == 0) return 1.0f;
  mask_tail(prefix, prefix_len);
  mask_tail(text, text_len);
  const F32x16 top = max_of(text, text_len, max_of(prefix, prefix_len, splat16(-__builtin_inff())));
  const float peak = t.args.scale * max_lanes(top);
  const F32x16 sum = exponentials(prefix, prefix_len, t.args.scale, peak, F32x16{});
  return sum_lanes(exponentials(text, text_len, t.args.scale, peak, sum));
}

// out[:, d .. d + n) = (sum over the prefix + sum over the text) / total; n <= kValueColumns.
inline void weighted_values(const AttentionTile& t, const float* totals, int64_t d, int64_t n) {
  const AttentionArgs& args = t.args;
  alignas(64) float sums[kTileRows * kValueColumns];
  Product<Floats> p = {};
  p.a = t.scores;
  p.a_stride = t.stride;
  p.b = args.v_prefix + d;
  p.step = args.head_dim;
  p.odd = kWidth;
  p.pair = 2 * kWidth;
  p.vectors = n / kWidth;
  p.tail = n % kWidth;
  p.c = sums;
  p.c_stride = kValueColumns;
  product_in_blocks(p, t.rows, 1, args.prefix_len);
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* weights = t.scores_of(r) + t.text_at;
    float* out = args.out + (t.row + r) * args.out_stride + d;
    for (int64_t v = 0; v < n; v += kWidth) {
      const int64_t lanes = smaller(kWidth, n - v);
      F32x16 sum = args.prefix_len > 0 ? load(sums + r * kValueColumns + v) : F32x16{};
      for (int64_t i = 0; i < t.text_len(r); ++i) {
        const float* value = args.v_text + args.slots[t.row + r][i] * args.text_stride + d + v;
        sum = fma(splat16(weights[i]), lanes == kWidth ? load(value) : load_part(value, lanes), sum);
      }
      sum = sum / splat16(totals[r]);
      lanes == kWidth ? store(out + v, sum) : store_part(out + v, sum, lanes);
    }
  }
}

void attention_of_tile(const AttentionTile& t) {
  float totals[kTileRows];
  prefix_scores(t);
  for (int64_t r = 0; r < t.rows; ++r) {
    text_scores(t, r);
    totals[r] = softmax_numerators(t, r);
  }
  for (int64_t d = 0; d < t.args.head_dim; d += kValueColumns)
    weighted_values(t, totals, d, smaller(kValueColumns, t.args.head_dim - d));
}

void attention(const AttentionArgs& args) {
  int64_t longest = 0;
  for (int64_t r = 0; args.slots && r < args.rows; ++r)
    if (args.text_len[r] > longest) longest = args.text_len[r];
  const int64_t stride = attention_scratch_floats(args.prefix_len, longest) / kAttentionRows;
  const int64_t text_at = ceil_div(args.prefix_len, kKeyBlock) * kKeyBlock;
  const RowTiles tiles(args.rows);
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t row = tiles.split(i);
    attention_of_tile({args, row, tiles.split(i + 1) - row, args.scratch, text_at, stride});
  }
}

// Keys as columns: block i of the packed form is (head_dim, kKeyBlock), zero beyond the last key.
void pack_keys(const float* k, int64_t k_stride, int64_t num_keys, int64_t head_dim, float* packed) {
  for (int64_t start = 0; start < num_keys; start += kKeyBlock, packed += head_dim * kKeyBlock) {
    const int64_t keys = smaller(kKeyBlock, num_keys - start);
    const float* rows = k + start * k_stride;
    for (int64_t d = 0; d < head_dim; ++d) {
      float* column = packed + d * kKeyBlock;
      for (int64_t i = 0; i < keys; ++i) column[i] = rows[i * k_stride + d];
      for (int64_t i = keys; i < kKeyBlock; ++i) column[i] = 0.0f;
    }
  }
}

}  // namespace
}  // namespace gitfast::cpu
