// attention: rows of one head over a shared prefix and each row's own text, one softmax over both.
#pragma once

#include "product-inl.h"
#include "tiles-inl.h"

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

  const float* query() const { return args.q + row * args.q_stride; }
  float* scores_of(int64_t r) const { return scores + r * stride; }
  int64_t text_len(int64_t r) const { return args.slots ? args.text_len[row + r] : 0; }
  // Behind the scores of a whole tile, queries as pairs.
  uint32_t* query_pairs() const { return reinterpret_cast<uint32_t*>(scores + kAttentionRows * stride); }
};

// C = A B over `depth` weights, in blocks of kSumBlock.
template <class Source>
void product_in_blocks(Product<Source> p, int64_t rows, int64_t depth) {
  constexpr int64_t kTermWeights = kWeightsIn<typename Source::Term>, kWordWeights = kTermWeights * Source::kTerms;
#if defined(GITFAST_TILES)
  if constexpr (kTiled<Source>) {  // its sums stay in registers: there is nothing to divide
    p.k = ceil_div(depth, kTermWeights);
    return tiled_product_of_rows(p, rows);
  }
#endif
  for (int64_t k = 0; k < depth; k += kSumBlock) {
    p.k = ceil_div(smaller(kSumBlock, depth - k), kTermWeights);
    p.add = k > 0;
    product_of_rows(p, rows);
    p.a += kSumBlock / kTermWeights;
    p.b += kSumBlock / kWordWeights * p.step;
  }
}

// Tiles of AMX read ahead by themselves.
template <class Source>
using Attended = Product<std::conditional_t<kTiled<Source>, Source, Followed<Source>>>;

// Bytes from one to the other, in words.
inline int64_t words_between(const void* from, const void* to) {
  return (static_cast<const char*>(to) - static_cast<const char*>(from)) / 4;
}

template <class Source>
void prefix_scores(const AttentionTile& t) {
  const AttentionArgs& args = t.args;
  constexpr int64_t kWordWeights = kWeightsIn<typename Source::Term> * Source::kTerms;
  Attended<Source> p = {};
  p.next = words_between(args.prefix.keys, args.prefix.values);
  if constexpr (std::is_same_v<typename Source::Term, float>) {
    p.a = t.query();
    p.a_stride = args.q_stride;
  } else {
    Source::round_rows(t.query(), args.q_stride, t.rows, args.head_dim, t.query_pairs());
    p.a = reinterpret_cast<const Bf16Pair*>(t.query_pairs());
    p.a_stride = rounded_words(args.head_dim);
  }
  p.b = static_cast<const typename Source::Word*>(args.prefix.keys);
  p.step = kKeyBlock;
  p.odd = ceil_div(args.head_dim, kWordWeights) * kKeyBlock;
  p.pair = 2 * p.odd;
  p.vectors = ceil_div(args.prefix.tokens, kKeyBlock);
  p.c = t.scores;
  p.c_stride = t.stride;
  product_in_blocks(p, t.rows, args.head_dim);
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

// Turns scores into exp(scale * (score - top)), in place. The largest becomes 1 however large it is: less its product
// with `scale`, rounded, it might be off by hundreds.
inline F32x16 exponentials(float* scores, int64_t n, float scale, float top, F32x16 sum) {
  const F32x16 s = splat16(scale), t = splat16(top);
  for (int64_t i = 0; i < n; i += kWidth) {
    const F32x16 e = map((load(scores + i) - t) * s, exp_nonpositive);
    store(scores + i, e);
    sum = sum + e;
  }
  return sum;
}

// The scores of one row become softmax numerators; returns their sum (1 where the row sees no key: its output is 0).
inline float softmax_numerators(const AttentionTile& t, int64_t r) {
  float* prefix = t.scores_of(r);
  float* text = prefix + t.text_at;
  const int64_t prefix_len = t.args.prefix.tokens, text_len = t.text_len(r);
  if (prefix_len + text_len == 0) return 1.0f;
  mask_tail(prefix, prefix_len);
  mask_tail(text, text_len);
  const float top = max_lanes(max_of(text, text_len, max_of(prefix, prefix_len, splat16(-__builtin_inff()))));
  const F32x16 sum = exponentials(prefix, prefix_len, t.args.scale, top, F32x16{});
  return sum_lanes(exponentials(text, text_len, t.args.scale, top, sum));
}

// Softmax numerators of the prefix as the next product reads them, in place.
template <class Source>
void round_numerators(const AttentionTile& t) {
  if constexpr (!std::is_same_v<typename Source::Term, float>)
    for (int64_t r = 0; r < t.rows; ++r)
      Source::round_rows(t.scores_of(r), 0, 1, t.args.prefix.tokens, reinterpret_cast<uint32_t*>(t.scores_of(r)));
}

// out[:, d .. d + n) = (sum over the prefix + sum over the text) / total; n <= kValueColumns.
template <class Source>
void weighted_values(const AttentionTile& t, const float* totals, int64_t d, int64_t n) {
  const AttentionArgs& args = t.args;
  alignas(64) float sums[kAttentionRows * kValueColumns];
  Attended<Source> p = {};
  p.next = words_between(args.prefix.values, args.next_keys ? args.next_keys : args.prefix.values);
  p.a = reinterpret_cast<const typename Source::Term*>(t.scores);
  p.a_stride = t.stride;
  p.b = static_cast<const typename Source::Word*>(args.prefix.values) + d;
  p.step = ceil_div(args.head_dim, kWidth) * kWidth;
  p.odd = kWidth;
  p.pair = 2 * kWidth;
  p.vectors = ceil_div(n, kWidth);
  p.c = sums;
  p.c_stride = kValueColumns;
  product_in_blocks(p, t.rows, args.prefix.tokens);
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* weights = t.scores_of(r) + t.text_at;
    float* out = args.out + (t.row + r) * args.out_stride + d;
    for (int64_t v = 0; v < n; v += kWidth) {
      const int64_t lanes = smaller(kWidth, n - v);
      F32x16 sum = args.prefix.tokens > 0 ? load(sums + r * kValueColumns + v) : F32x16{};
      for (int64_t i = 0; i < t.text_len(r); ++i) {
        const float* value = args.v_text + args.slots[t.row + r][i] * args.text_stride + d + v;
        sum = fma(splat16(weights[i]), lanes == kWidth ? load(value) : load_part(value, lanes), sum);
      }
      sum = sum / splat16(totals[r]);
      lanes == kWidth ? store(out + v, sum) : store_part(out + v, sum, lanes);
    }
  }
}

template <class Source>
void attention_of_tile(const AttentionTile& t) {
  float totals[kAttentionRows];
  prefix_scores<Source>(t);
  for (int64_t r = 0; r < t.rows; ++r) {
    text_scores(t, r);
    totals[r] = softmax_numerators(t, r);
  }
  round_numerators<Source>(t);
  for (int64_t d = 0; d < t.args.head_dim; d += kValueColumns)
    weighted_values<Source>(t, totals, d, smaller(kValueColumns, t.args.head_dim - d));
}

template <class Source>
void attention_of_rows(const AttentionArgs& args, int64_t text_at, int64_t stride) {
  const RowTiles tiles(args.rows, kTiled<Source> ? kAttentionRows : kTileRows);
  for (int64_t i = 0; i < tiles.count; ++i) {
    const int64_t row = tiles.split(i);
    attention_of_tile<Source>({args, row, tiles.split(i + 1) - row, args.scratch, text_at, stride});
  }
}

void attention(const AttentionArgs& args) {
  int64_t longest = 0;
  for (int64_t r = 0; args.slots && r < args.rows; ++r)
    if (args.text_len[r] > longest) longest = args.text_len[r];
  const int64_t text_at = ceil_div(args.prefix.tokens, kKeyBlock) * kKeyBlock;
  // An odd number of blocks: rows at a stride of a power of two would meet in a few sets of the cache.
  const int64_t stride = ((text_at + longest + kKeyBlock - 1) / kKeyBlock | 1) * kKeyBlock;
  args.prefix.format == WeightFormat::f32 ? attention_of_rows<Floats>(args, text_at, stride)
                                          : attention_of_rows<Bf16Weights>(args, text_at, stride);
}

// Columns d of 16 keys, of which `keys` exist; zero beyond.
inline F32x16 key_column(const float* k, int64_t stride, int64_t keys, int64_t d) {
  float lanes[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) lanes[i] = i < keys ? k[i * stride + d] : 0.0f;
  return load(lanes);
}

inline void store_pairs(uint32_t* to, const F32x16& first, const F32x16& second) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) store_vec(to + i * kLanes, (Vec)bf16_pair(first.part[i], second.part[i]));
}

void pack_keys(const float* k, int64_t stride, int64_t keys, int64_t head_dim, WeightFormat format, uint32_t* to) {
  const int64_t terms = terms_per_word(format);
  for (int64_t d = 0; d < head_dim; d += terms, to += kKeyBlock) {
    const F32x16 first = key_column(k, stride, keys, d);
    if (format == WeightFormat::f32)
      store(reinterpret_cast<float*>(to), first);
    else
      store_pairs(to, first, d + 1 < head_dim ? key_column(k, stride, keys, d + 1) : F32x16{});
  }
}

inline F32x16 value_columns(const float* row, int64_t d, int64_t head_dim) {
  return d + kWidth <= head_dim ? load(row + d) : load_part(row + d, head_dim - d);
}

void pack_head(const float* k, const float* v, int64_t stride, int64_t tokens, int64_t head_dim, WeightFormat format,
               void* keys, void* values) {
  const int64_t terms = terms_per_word(format);
  auto* to = static_cast<uint32_t*>(keys);
  for (int64_t t = 0; t < tokens; t += kKeyBlock, to += ceil_div(head_dim, terms) * kKeyBlock)
    pack_keys(k + t * stride, stride, smaller(kKeyBlock, tokens - t), head_dim, format, to);
  to = static_cast<uint32_t*>(values);
  for (int64_t t = 0; t < tokens; t += terms)
    for (int64_t d = 0; d < head_dim; d += kWidth, to += kWidth) {
      const float* row = v + t * stride;
      const F32x16 first = value_columns(row, d, head_dim);
      if (format == WeightFormat::f32)
        store(reinterpret_cast<float*>(to), first);
      else
        store_pairs(to, first, t + 1 < tokens ? value_columns(row + stride, d, head_dim) : F32x16{});
    }
}

}  // namespace
}  // namespace gitfast::cpu
