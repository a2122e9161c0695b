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
constexpr int64_t kAttentionRows = 16;  // the most rows whose scores are held at once
constexpr int64_t kTileSide = 16;       // rows of a tile of AMX, and its 4-byte words in a row
constexpr int64_t kTileWords = kTileSide * kTileSide;
constexpr int64_t kTiledRows = 2 * kTileSide;  // rows whose sums the tiles hold at once
// Whether so many rows are those of images: where there are tile registers, a product reads them in tiles, and its
// panels are handed out in pieces.
constexpr bool many_rows(int64_t m) { return m > kTiledRows; }
// Rows that kernels may read, and nothing more, beyond those of LinearArgs::rounded.
constexpr int64_t kRoundedPadding = kTiledRows;

enum class Activation : uint8_t { none, quick_gelu, gelu_erf };

// The storage of weights. Sums are always in float32; the type of the factors depends on the instruction set: see
// Kernels::round_rows. Weights of w8a8 are those of int8, and meet activations of 8 bits where that is faster.
enum class WeightFormat : uint8_t { f32, bf16, int8, w8a8 };

constexpr bool is_int8(WeightFormat format) { return format == WeightFormat::int8 || format == WeightFormat::w8a8; }

// Terms in the 4 bytes that a packed panel holds of one column.
constexpr int64_t terms_per_word(WeightFormat format) {
  return is_int8(format) ? 4 : format == WeightFormat::bf16 ? 2 : 1;
}

// W (N, K) as panels [ceil(N / kPanel)][ceil(K / T)][kPanel] of 4-byte words, T terms of one column in each;
// zero-padded in N and K.
//   f32:  T = 1.
//   bf16: T = 2, the first term in the low half.
//   int8: T = 4. Words of 16 columns are one block of 64 bytes, whose 16-byte lane i holds columns 4i to 4i + 3: first
//         their terms 0 and 1, (c0t0 c0t1 c1t0 c1t1 ...), then their terms 2 and 3, so that interleaving a lane with
//         itself makes the pairs of bf16. W[j, k] is its byte, in [-127, 127], times scales[j].
struct PackedLinear {
  int64_t n = 0;
  int64_t k = 0;
  WeightFormat format = WeightFormat::f32;
  const void* panels = nullptr;
  const float* scales = nullptr;  // (N), is_int8 only
  const float* bias = nullptr;    // (N) or null

  int64_t num_panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t panel_words() const {
    const int64_t terms = terms_per_word(format);
    return (k + terms - 1) / terms * kPanel;
  }
};

// Pairs of bfloat16 in a row of K of them, up to a whole tile.
constexpr int64_t rounded_words(int64_t k) { return (k + 31) / 32 * 16; }

// Words in a row of K values as whole numbers: for every kSumBlock, either two rows of 64 words of four int8, high and
// low, or 128 words of two int16, and in each case their units. Rows of whole numbers of 8 bits fill half of it.
constexpr int64_t quantized_words(int64_t k) { return (k + kSumBlock - 1) / kSumBlock * (kSumBlock / 4 + 1) * 2; }

// y[m, j] = act(x[m, :] . W[j, :] + bias[j]) + residual[m, j]
struct LinearArgs {
  const float* x = nullptr;  // (M, K), row stride x_stride
  int64_t x_stride = 0;
  // x by Kernels::rounding(w->format, m), where there is one; memory for kRoundedPadding more rows.
  const uint32_t* rounded = nullptr;
  int64_t m = 0;
  const PackedLinear* w = nullptr;
  Activation act = Activation::none;
  const float* residual = nullptr;  // (M, N) with y's row stride, or null; may be y itself
  float* y = nullptr;               // (M, N), row stride y_stride
  int64_t y_stride = 0;
  // Written instead of y, which has no residual then: y as LinearArgs::rounded of a product of as many rows, if
  // Kernels::leaves_rounded.
  uint32_t* y_rounded = nullptr;
};

// Keys and values of one head for P tokens, float32 or bfloat16, in 4-byte words of T = 1 or 2 of them.
//   keys:   [ceil(P / kKeyBlock)][ceil(head_dim / T)][kKeyBlock], T values of one key in a word; zero-padded.
//   values: [ceil(P / T)][head_dim rounded up to 16], values of T tokens in a word; zero-padded.
struct PackedHead {
  WeightFormat format = WeightFormat::f32;
  const void* keys = nullptr;
  const void* values = nullptr;
  int64_t tokens = 0;  // P, may be 0
};

int64_t packed_key_words(WeightFormat format, int64_t tokens, int64_t head_dim);
int64_t packed_value_words(WeightFormat format, int64_t tokens, int64_t head_dim);

// Attention of `rows` queries of one head. All rows see the whole prefix; row r then sees the text tokens
// slots[r][0 .. text_len[r]) of an append-only store. Softmax in float32, over prefix and text together. Over a prefix
// of bfloat16, kernels that multiply it round queries and softmax numerators to it as well.
struct AttentionArgs {
  const float* q = nullptr;  // (rows, head_dim), row stride q_stride
  int64_t q_stride = 0;
  int64_t rows = 0;
  int64_t head_dim = 0;
  float scale = 0;  // > 0
  PackedHead prefix;
  const void* next_keys = nullptr;  // what the next call reads, if known: few rows fetch it ahead
  const float* k_text = nullptr;    // slot s of this head: k_text + s * text_stride, head_dim values
  const float* v_text = nullptr;
  int64_t text_stride = 0;
  const int32_t* const* slots = nullptr;  // per row; null when there is no text
  const int32_t* text_len = nullptr;      // per row
  float* out = nullptr;                   // (rows, head_dim), row stride out_stride
  int64_t out_stride = 0;
  float* scratch = nullptr;  // attention_scratch_floats(...) values, 64-byte aligned
};

// y = (x - mean) / sqrt(var + eps) * gamma + beta
struct LayerNormArgs {
  const float* x = nullptr;  // (rows, d), row stride x_stride
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t d = 0;                 // >= 1
  const float* gamma = nullptr;  // (d)
  const float* beta = nullptr;   // (d)
  float eps = 0;
  float* y = nullptr;  // (rows, d), row stride y_stride; may be x
  int64_t y_stride = 0;
};

// Scratch values one call to `attention` needs for any number of rows.
int64_t attention_scratch_floats(int64_t head_dim, int64_t prefix_len, int64_t max_text_len);

struct Kernels {
  using Rounding = void (*)(const float* x, int64_t x_stride, int64_t rows, int64_t k, uint32_t* out);

  Isa isa;

  // Panels [panel_begin, panel_end) of the product; a thread's share of the columns.
  void (*linear)(const LinearArgs& args, int64_t panel_begin, int64_t panel_end);

  void (*attention)(const AttentionArgs& args);

  void (*layer_norm)(const LayerNormArgs& args);

  // Packs the rows k and v (P, head_dim), both of row stride `stride`, as PackedHead has them.
  void (*pack_head)(const float* k, const float* v, int64_t stride, int64_t tokens, int64_t head_dim,
                    WeightFormat format, void* keys, void* values);

  // x (rows, K), row stride x_stride, as pairs of bfloat16 (rows, rounded_words(K)), zero-padded in K: what is
  // multiplied with weights of bf16 and int8, the latter being whole numbers that bfloat16 holds exactly. Null where
  // the instruction set has no such product: then weights are widened to float32, and x stays as it is.
  Rounding round_rows;

  // x (rows, K) as (rows, quantized_words(K)): the whole numbers that are multiplied with weights of int8, in units
  // that stand behind every kSumBlock of them; where they are two rows of int8, each value is 256 times its high part
  // plus its low part, and there are units for both. A block with a value that is not finite has NaN for units. Null
  // where weights of int8 are multiplied as bfloat16 or float32.
  Rounding quantize_rows = nullptr;

  // The same for weights of w8a8, x as whole numbers of 8 bits. Null where these weights are multiplied as int8 are.
  Rounding quantize_rows_to_bytes = nullptr;

  // As round_rows, in tiles of 16 rows by 16 pairs, those of the same rows one after another: what is multiplied where
  // there are tile registers and many_rows. Parts of x begin at multiples of 16 rows.
  Rounding round_tiles = nullptr;

  // How x of m rows is handed to `linear`, by the format of the weights; null: as it is.
  Rounding rounding(WeightFormat format, int64_t m) const {
    if (format == WeightFormat::f32) return nullptr;
    if (format == WeightFormat::w8a8 && quantize_rows_to_bytes) return quantize_rows_to_bytes;
    if (is_int8(format) && quantize_rows) return quantize_rows;
    return round_tiles && many_rows(m) ? round_tiles : round_rows;
  }

  // Whether `linear` can leave y as it is handed to a product of such weights. Not as whole numbers: their units are
  // those of 256 columns, which no thread has together.
  bool leaves_rounded(WeightFormat format) const {
    const Rounding handed = rounding(format, 1);
    return handed && handed == round_rows;
  }

  // Words of one row of K, so handed.
  int64_t words_of_row(WeightFormat format, int64_t k) const {
    const Rounding handed = rounding(format, 1);
    return handed && handed != round_rows ? quantized_words(k) : rounded_words(k);
  }
};

// The table of an instruction set this machine can run; throws Error when it cannot.
const Kernels& kernels_for(Isa isa);

// float32 or float16 values as float32.
void to_floats(const void* source, bool is_f16, int64_t n, float* out);

// float32 as bfloat16, to nearest, ties to even.
void to_bf16(const float* source, int64_t n, uint16_t* out);

// Packs rows of W (rows, K), float32 or float16, as output columns [n_offset, n_offset + rows) of the panels of a
// product with K terms in `format`; int8 writes their scales, scales[n_offset] being the first. The padding of the
// panels must be zero beforehand. Throws Error where int8 meets a weight that is not finite.
void pack_linear_rows(const void* w, bool is_f16, int64_t rows, int64_t k, int64_t n_offset, WeightFormat format,
                      void* panels, float* scales);

// The columns of one panel as rows (kPanel, K) of float32, those beyond N left as they are; int8 times their scales.
void unpack_panel(const PackedLinear& w, int64_t panel, float* columns);

}  // namespace gitfast::cpu
