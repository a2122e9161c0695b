// The arithmetic of the CPU engine: one table of functions per instruction set, chosen once at run time.
//
// Every function computes each output row with a fixed order of operations that depends on the shapes alone, never
// on how many rows or columns share the call: a row's result is independent of its batch and of the thread count.
// Sums over K run in blocks of kSumBlock terms, each summed from zero in ascending k and then added in order.
#pragma once

#include <cstdint>

#include "isa.h"

namespace gitfast::cpu {

constexpr int64_t kPanel = 32;          // output columns of a packed weight panel
constexpr int64_t kSumBlock = 256;      // terms of one partial sum
constexpr int64_t kKeyBlock = 16;       // keys of one transposed block of prefix K
constexpr int64_t kAttentionRows = 12;  // rows whose scores are held at once

enum class Activation : uint8_t { none, quick_gelu, gelu_erf };

// W (N, K) as panels [ceil(N / kPanel)][K][kPanel], zero-padded in N; bias (N) or null.
struct PackedLinear {
  int64_t n = 0;
  int64_t k = 0;
  const float* panels = nullptr;
  const float* bias = nullptr;

  int64_t num_panels() const { return (n + kPanel - 1) / kPanel; }
};

// y[m, j] = act(x[m, :] . W[j, :] + bias[j]) + residual[m, j]
struct LinearArgs {
  const float* x = nullptr;  // (M, K), row stride x_stride
  int64_t x_stride = 0;
  int64_t m = 0;
  const PackedLinear* w = nullptr;
  Activation act = Activation::none;
  const float* residual = nullptr;  // (M, N) with y's row stride, or null; may be y itself
  float* y = nullptr;               // (M, N), row stride y_stride
  int64_t y_stride = 0;
};

// Attention of `rows` queries of one head. All rows see the whole prefix; row r then sees the text tokens
// slots[r][0 .. text_len[r]) of an append-only store. Softmax in float32, over prefix and text together.
struct AttentionArgs {
  const float* q = nullptr;  // (rows, head_dim), row stride q_stride
  int64_t q_stride = 0;
  int64_t rows = 0;
  int64_t head_dim = 0;
  float scale = 0;                  // > 0
  const float* k_prefix = nullptr;  // [ceil(P / kKeyBlock)][head_dim][kKeyBlock], zero-padded in P
  const float* v_prefix = nullptr;  // (P, head_dim)
  int64_t prefix_len = 0;           // P, may be 0
  const float* k_text = nullptr;    // slot s of this head: k_text + s * text_stride, head_dim values
  const float* v_text = nullptr;
  int64_t text_stride = 0;
  const int32_t* const* slots = nullptr;  // per row; null when there is no text
  const int32_t* text_len = nullptr;      // per row
  float* out = nullptr;                   // (rows, head_dim), row stride out_stride
  int64_t out_stride = 0;
  float* scratch = nullptr;  // attention_scratch_floats(...) values, 64-byte aligned
};

// Scratch values one call to `attention` needs for any number of rows.
int64_t attention_scratch_floats(int64_t prefix_len, int64_t max_text_len);

struct Kernels {
  Isa isa;

  // Panels [panel_begin, panel_end) of the product; a thread's share of the columns.
  void (*linear)(const LinearArgs& args, int64_t panel_begin, int64_t panel_end);

  void (*attention)(const AttentionArgs& args);

  // y = (x - mean) / sqrt(var + eps) * gamma + beta, rows of length d; y may be x.
  void (*layer_norm)(const float* x, int64_t x_stride, const float* gamma, const float* beta, float eps, int64_t rows,
                     int64_t d, float* y, int64_t y_stride);

  // Writes K rows (P, head_dim), row stride k_stride, as the transposed blocks `attention` reads.
  void (*pack_keys)(const float* k, int64_t k_stride, int64_t num_keys, int64_t head_dim, float* packed);
};

// The table of an instruction set this machine can run; throws Error when it cannot.
const Kernels& kernels_for(Isa isa);

// float32 or float16 values as float32.
void to_floats(const void* source, bool is_f16, int64_t n, float* out);

// Packs rows of W (rows, K), float32 or float16, as output columns [n_offset, n_offset + rows) of `panels`.
void pack_linear_rows(const void* w, bool is_f16, int64_t rows, int64_t k, int64_t n_offset, float* panels);

}  // namespace gitfast::cpu
