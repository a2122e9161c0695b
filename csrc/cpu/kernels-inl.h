// The kernels, written once and compiled under each instruction set's flags. Everything is in an anonymous namespace
// and nothing of the standard library is instantiated: a symbol compiled here for AVX-512 must not be picked by the
// linker to serve an older CPU.
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace gitfast::cpu {
namespace {

#include "simd-inl.h"

constexpr int kPanelVectors = kPanel / kLanes;

// The register tile of a product: kTileRows rows by kTileVectors vectors, as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
constexpr int kTileVectors = 2;
#else
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
#endif

inline VF activate(VF x, Activation act) {
  switch (act) {
    case Activation::quick_gelu:
      return x / (splat(1.f) + exp(splat(-1.702f) * x));
    case Activation::gelu_erf:
      return splat(0.5f) * x * (splat(1.f) + erf(x * splat(0.707106781f)));
    default:
      return x;
  }
}

// Bias, activation and residual of one vector of outputs; `n` of its lanes exist.
inline void finish(const LinearArgs& a, VF sum, int64_t row, int64_t column, int64_t n) {
  float* y = a.y + row * a.y_stride + column;
  const float* bias = a.w->bias ? a.w->bias + column : nullptr;
  const float* residual = a.residual ? a.residual + row * a.y_stride + column : nullptr;
  if (n >= kLanes) {
    if (bias) sum += load(bias);
    sum = activate(sum, a.act);
    if (residual) sum += load(residual);
    store(y, sum);
  } else if (n > 0) {
    if (bias) sum += load_part(bias, n, 0);
    sum = activate(sum, a.act);
    if (residual) sum += load_part(residual, n, 0);
    store_part(y, sum, n);
  }
}

// Rows [row, row + M) by P neighbouring panels, of which the V vectors from `vector` on. Each output is a chain of
// fused multiply-adds over a block of k, added to the sum of the blocks before.
template <int M, int P, int V>
void tile(const LinearArgs& a, int64_t row, int64_t panel, int vector) {
  const int64_t depth = a.w->k;
  const float* x = a.x + row * a.x_stride;
  const float* w = a.w->panels + panel * depth * kPanel + vector * kLanes;
  VF total[M][P * V] = {};
  for (int64_t start = 0; start < depth; start += kSumBlock) {
    const int64_t stop = start + kSumBlock < depth ? start + kSumBlock : depth;
    VF sum[M][P * V] = {};
    for (int64_t k = start; k < stop; ++k) {
      VF b[P * V];
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) b[p * V + v] = load(w + (p * depth + k) * kPanel + v * kLanes);
      for (int m = 0; m < M; ++m) {
        const VF xk = splat(x[m * a.x_stride + k]);
        for (int i = 0; i < P * V; ++i) sum[m][i] = fma(xk, b[i], sum[m][i]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < P * V; ++i) total[m][i] += sum[m][i];
  }
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < V; ++v) {
        const int64_t column = (panel + p) * kPanel + (vector + v) * kLanes;
        finish(a, total[m][p * V + v], row + m, column, a.w->n - column);
      }
}

// All rows of one panel.
template <int M>
void rows_of_panel(const LinearArgs& a, int64_t row, int64_t panel) {
  for (int v = 0; v < kPanelVectors; v += kTileVectors) tile<M, 1, kTileVectors>(a, row, panel, v);
}

void panel_tail(const LinearArgs& a, int64_t row, int64_t rows, int64_t panel) {
  switch (rows) {
    case 1:
      return rows_of_panel<1>(a, row, panel);
    case 2:
      return rows_of_panel<2>(a, row, panel);
    case 3:
      return rows_of_panel<3>(a, row, panel);
    case 4:
      return rows_of_panel<4>(a, row, panel);
    case 5:
      return rows_of_panel<5>(a, row, panel);
#if defined(__AVX512F__)
    case 6:
      return rows_of_panel<6>(a, row, panel);
    case 7:
      return rows_of_panel<7>(a, row, panel);
    case 8:
      return rows_of_panel<8>(a, row, panel);
    case 9:
      return rows_of_panel<9>(a, row, panel);
    case 10:
      return rows_of_panel<10>(a, row, panel);
    case 11:
      return rows_of_panel<11>(a, row, panel);
#endif
    default:
      return;
  }
}

// One or two rows read every weight once: several panels at a time keep enough independent sums in flight.
template <int M>
void few_rows(const LinearArgs& a, int64_t panel_begin, int64_t panel_end) {
  constexpr int kGroup = 8 / (M * kPanelVectors) > 0 ? 8 / (M * kPanelVectors) : 1;
  int64_t panel = panel_begin;
  for (; panel + kGroup <= panel_end; panel += kGroup) tile<M, kGroup, kPanelVectors>(a, 0, panel, 0);
  for (; panel < panel_end; ++panel) tile<M, 1, kPanelVectors>(a, 0, panel, 0);
}

void linear(const LinearArgs& a, int64_t panel_begin, int64_t panel_end) {
  if (a.m == 1) return few_rows<1>(a, panel_begin, panel_end);
  if (a.m == 2) return few_rows<2>(a, panel_begin, panel_end);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    int64_t row = 0;
    for (; row + kTileRows <= a.m; row += kTileRows) rows_of_panel<kTileRows>(a, row, panel);
    panel_tail(a, row, a.m - row, panel);
  }
}

constexpr int kQueryTile = 8;
static_assert(kKeyBlock % kLanes == 0, "a key block is a whole number of vectors");

// Scores of M queries against the prefix, each a chain over the head dimension; `scores` rows are `stride` apart.
template <int M>
void prefix_scores(const AttentionArgs& a, int64_t row, float* scores, int64_t stride) {
  constexpr int kVectors = kKeyBlock / kLanes;
  const float* q = a.q + row * a.q_stride;
  for (int64_t key = 0; key < a.prefix_len; key += kKeyBlock) {
    const float* k = a.k_prefix + key * a.head_dim;
    VF sum[M][kVectors] = {};
    for (int64_t d = 0; d < a.head_dim; ++d)
      for (int m = 0; m < M; ++m) {
        const VF qd = splat(q[m * a.q_stride + d]);
        for (int v = 0; v < kVectors; ++v) sum[m][v] = fma(qd, load(k + d * kKeyBlock + v * kLanes), sum[m][v]);
      }
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < kVectors; ++v) store(scores + m * stride + key + v * kLanes, sum[m][v] * splat(a.scale));
  }
}

float dot(const float* x, const float* y, int64_t n) {
  VF sum = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = fma(load(x + i), load(y + i), sum);
  float total = sum_lanes(sum);
  for (; i < n; ++i) total = fma(x[i], y[i], total);
  return total;
}

// Scores to exp(score - max), in place; returns their sum.
float softmax_terms(float* s, int64_t n) {
  VF top = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(load(s + i), top);
  if (i < n) top = max(load_part(s + i, n - i, -__builtin_inff()), top);
  const VF peak = splat(max_lanes(top));
  VF sum = {};
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const VF e = exp(load(s + i) - peak);
    store(s + i, e);
    sum += e;
  }
  if (i < n) {
    const VF e = exp(load_part(s + i, n - i, -__builtin_inff()) - peak);
    store_part(s + i, e, n - i);
    sum += e;
  }
  return sum_lanes(sum);
}

// out[m, d..d + V vectors) += sum over prefix keys of p[m, key] * V[key, d..), one chain over the keys.
template <int M, int V>
void prefix_values(const AttentionArgs& a, const float* p, int64_t stride, int64_t d, float* out) {
  VF sum[M][V] = {};
  for (int64_t key = 0; key < a.prefix_len; ++key) {
    const float* value = a.v_prefix + key * a.head_dim + d;
    for (int m = 0; m < M; ++m) {
      const VF weight = splat(p[m * stride + key]);
      for (int v = 0; v < V; ++v) sum[m][v] = fma(weight, load(value + v * kLanes), sum[m][v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(out + m * a.out_stride + d + v * kLanes, sum[m][v]);
}

template <int M>
void weighted_values(const AttentionArgs& a, int64_t row, const float* p, int64_t stride) {
  float* out = a.out + row * a.out_stride;
  constexpr int kWide = 4;
  int64_t d = 0;
  for (; d + kWide * kLanes <= a.head_dim; d += kWide * kLanes) prefix_values<M, kWide>(a, p, stride, d, out);
  for (; d + kLanes <= a.head_dim; d += kLanes) prefix_values<M, 1>(a, p, stride, d, out);
  for (; d < a.head_dim; ++d)
    for (int m = 0; m < M; ++m) {
      float sum = 0;
      for (int64_t key = 0; key < a.prefix_len; ++key)
        sum = fma(p[m * stride + key], a.v_prefix[key * a.head_dim + d], sum);
      out[m * a.out_stride + d] = sum;
    }
}

// out += sum over the row's text tokens of p[t] * V[slot t].
void add_text_values(const AttentionArgs& a, int64_t row, const float* p) {
  float* out = a.out + row * a.out_stride;
  for (int64_t t = 0; t < a.text_len[row]; ++t) {
    const float* value = a.v_text + a.slots[row][t] * a.text_stride;
    const VF weight = splat(p[t]);
    int64_t d = 0;
    for (; d + kLanes <= a.head_dim; d += kLanes) store(out + d, fma(weight, load(value + d), load(out + d)));
    for (; d < a.head_dim; ++d) out[d] = fma(p[t], value[d], out[d]);
  }
}

template <int M>
void attention_tile(const AttentionArgs& a, int64_t row, int64_t stride) {
  prefix_scores<M>(a, row, a.scratch, stride);
  float sums[M];
  for (int m = 0; m < M; ++m) {
    float* s = a.scratch + m * stride;
    const int64_t text = a.slots ? a.text_len[row + m] : 0;
    const float* q = a.q + (row + m) * a.q_stride;
    for (int64_t t = 0; t < text; ++t)  // over the padding of the last key block
      s[a.prefix_len + t] = a.scale * dot(q, a.k_text + a.slots[row + m][t] * a.text_stride, a.head_dim);
    sums[m] = softmax_terms(s, a.prefix_len + text);
  }
  weighted_values<M>(a, row, a.scratch, stride);
  for (int m = 0; m < M; ++m) {
    if (a.slots) add_text_values(a, row + m, a.scratch + m * stride + a.prefix_len);
    float* out = a.out + (row + m) * a.out_stride;
    int64_t d = 0;
    for (; d + kLanes <= a.head_dim; d += kLanes) store(out + d, load(out + d) / splat(sums[m]));
    for (; d < a.head_dim; ++d) out[d] /= sums[m];
  }
}

void attention(const AttentionArgs& a) {
  int64_t text = 0;
  for (int64_t r = 0; a.slots && r < a.rows; ++r) text = a.text_len[r] > text ? a.text_len[r] : text;
  const int64_t stride = attention_scratch_floats(a.prefix_len, text) / kQueryTile;
  int64_t row = 0;
  for (; row + kQueryTile <= a.rows; row += kQueryTile) attention_tile<kQueryTile>(a, row, stride);
  if (row + 4 <= a.rows) {
    attention_tile<4>(a, row, stride);
    row += 4;
  }
  for (; row < a.rows; ++row) attention_tile<1>(a, row, stride);
}

void layer_norm(const float* x, int64_t x_stride, const float* gamma, const float* beta, float eps, int64_t rows,
                int64_t d, float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    VF sum = {};
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) sum += load(x + i);
    if (i < d) sum += load_part(x + i, d - i, 0);
    const float mean = sum_lanes(sum) / static_cast<float>(d);

    VF squares = {};
    for (i = 0; i + kLanes <= d; i += kLanes) {
      const VF c = load(x + i) - splat(mean);
      squares = fma(c, c, squares);
    }
    if (i < d) {
      const VF c = load_part(x + i, d - i, mean) - splat(mean);
      squares = fma(c, c, squares);
    }
    const float scale = 1.f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(d) + eps);

    for (i = 0; i + kLanes <= d; i += kLanes)
      store(y + i, fma((load(x + i) - splat(mean)) * splat(scale), load(gamma + i), load(beta + i)));
    for (; i < d; ++i) y[i] = fma((x[i] - mean) * scale, gamma[i], beta[i]);
  }
}

void pack_keys(const float* k, int64_t k_stride, int64_t num_keys, int64_t head_dim, float* packed) {
  for (int64_t start = 0; start < num_keys; start += kKeyBlock, packed += head_dim * kKeyBlock)
    for (int64_t lane = 0; lane < kKeyBlock; ++lane)
      for (int64_t d = 0; d < head_dim; ++d)
        packed[d * kKeyBlock + lane] = start + lane < num_keys ? k[(start + lane) * k_stride + d] : 0.f;
}

}  // namespace
