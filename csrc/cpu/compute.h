// Products and norms run by all threads of a pool, and the loop that runs any other kernel so.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "threads.h"
#include "weights.h"

namespace gitfast::cpu {

inline Buffer float_buffer(int64_t n) { return Buffer(static_cast<size_t>(n) * sizeof(float)); }

// Dense rows that a product reads, and the same as Kernels::rounding has them, where somebody made them so.
struct Input {
  Input(const float* rows, const uint32_t* rounded = nullptr) : rows(rows), rounded(rounded) {}
  const float* rows;
  const uint32_t* rounded;
};

// One per call of the engine: it keeps workspace between products.
class Compute {
 public:
  Compute(const Kernels& kernels, ThreadPool& pool) : kernels(kernels), pool(pool) {}

  // Pieces for each thread of what takes hundreds of microseconds, where a processor that is shared falls behind. Few
  // rows read weights at the speed of the memory: long parts of a thread's own are read faster.
  static constexpr int kPiecesOfManyRows = 4;

  // fn(begin, end, thread) over parts of [0, n). By reference: a region allocates nothing.
  template <class Fn>
  void parallel(int64_t n, int64_t grain, Fn&& fn, int pieces = 1) const {
    pool.parallel_for(n, grain, std::ref(fn), pieces);
  }

  void linear(LinearArgs args) {
    prepare(args);
    const int pieces = many_rows(args.m) ? kPiecesOfManyRows : 1;
    const auto panels = [&](int64_t begin, int64_t end, int) { kernels.linear(args, begin, end); };
    parallel(args.w->num_panels(), 1, panels, pieces);
  }

  // Only those columns.
  void linear_panels(LinearArgs args, const std::vector<int64_t>& panels) {
    prepare(args);
    parallel(static_cast<int64_t>(panels.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (auto p = panels.begin() + begin; p != panels.begin() + end; ++p) kernels.linear(args, *p, *p + 1);
    });
  }

  // y (m, N) = act(x (m, K) W^T + bias) + residual; rows are dense.
  void linear(Input x, int64_t m, const PackedLinear& w, float* y, Activation act = Activation::none,
              const float* residual = nullptr) {
    linear({x.rows, w.k, x.rounded, m, &w, act, residual, y, w.n});
  }

  // Floats from one row of an MLP's inner values to the next: rows a multiple of 4 KB apart would meet in a few sets of
  // the cache.
  static int64_t wide_stride(int64_t intermediate) { return intermediate + 16; }

  // x (rows, D) += fc2(act(fc1(in (rows, D)))); `wide` (rows, wide_stride) is workspace, and `in` may be x. Inner
  // values leave fc1 as fc2 reads them where they can.
  void mlp(Input in, int64_t rows, const PackedLinear& fc1, Activation act, const PackedLinear& fc2, float* wide,
           float* x) {
    const int64_t stride = wide_stride(fc1.n);
    LinearArgs inner{in.rows, fc1.k, in.rounded, rows, &fc1, act, nullptr, wide, stride};
    if (kernels.leaves_rounded(fc2.format)) inner.y_rounded = reserve(inner_, rows, fc2);
    linear(inner);
    linear({wide, stride, inner.y_rounded, rows, &fc2, Activation::none, x, x, fc2.n});
  }

  // y = norm(x) over dense rows (rows, d); y may be x.
  void norm(const float* x, int64_t rows, const Norm& n, float* y) const {
    constexpr int64_t kRowsPerPart = 8;  // fewer cost less than waking a thread
    parallel(rows, kRowsPerPart, [&](int64_t begin, int64_t end, int) { norm_rows(x, begin, end - begin, n, y); });
  }

  // The same, and y rounded as the product with w reads it, each row by who has just made it. Valid until the next
  // product.
  Input norm(const float* x, int64_t rows, const Norm& n, float* y, const PackedLinear& w) {
    const Kernels::Rounding rounding = kernels.rounding(w.format, rows);
    if (!rounding) {
      norm(x, rows, n, y);
      return y;
    }
    const auto first = [&](int64_t row, int64_t count) { norm_rows(x, row, count, n, y); };
    return {y, rounded({y, w.k, nullptr, rows, &w}, rounding, first)};
  }

  const Kernels& kernels;
  ThreadPool& pool;

 private:
  void norm_rows(const float* x, int64_t row, int64_t count, const Norm& n, float* y) const {
    const int64_t d = n.size();
    kernels.layer_norm({x + row * d, d, count, d, n.gamma.floats(), n.beta.floats(), n.eps, y + row * d, d});
  }

  void prepare(LinearArgs& args) {
    if (args.rounded) return;
    if (const Kernels::Rounding rounding = kernels.rounding(args.w->format, args.m))
      args.rounded = rounded(args, rounding, [](int64_t, int64_t) {});
  }

  // x rounded, by parts of rows; make(row, count) is called for each before.
  template <class Make>
  const uint32_t* rounded(const LinearArgs& args, Kernels::Rounding rounding, Make make) {
    const int64_t k = args.w->k, words = kernels.words_of_row(args.w->format, k);
    uint32_t* pairs = reserve(rounded_, args.m, *args.w);
    parallel((args.m + kTileSide - 1) / kTileSide, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t row = begin * kTileSide, rows = std::min(end * kTileSide, args.m) - row;
      make(row, rows);
      rounding(args.x + row * args.x_stride, args.x_stride, rows, k, pairs + row * words);
    });
    return pairs;
  }

  // Words for LinearArgs::rounded of `rows` rows.
  uint32_t* reserve(Buffer& buffer, int64_t rows, const PackedLinear& w) const {
    const int64_t words = (rows + kRoundedPadding) * kernels.words_of_row(w.format, w.k);
    const auto bytes = static_cast<size_t>(words) * sizeof(uint32_t);
    if (buffer.bytes() < bytes) buffer = Buffer(bytes);
    return buffer.words();
  }

  Buffer rounded_;  // rows of the product at hand
  Buffer inner_;    // rows that leave one product for the next
};

}  // namespace gitfast::cpu
