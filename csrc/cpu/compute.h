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

// One per call of the engine: it keeps workspace between products.
class Compute {
 public:
  Compute(const Kernels& kernels, ThreadPool& pool) : kernels(kernels), pool(pool) {}

  // fn(begin, end, thread) over parts of [0, n). By reference: a region allocates nothing.
  template <class Fn>
  void parallel(int64_t n, int64_t grain, Fn&& fn) const {
    pool.parallel_for(n, grain, std::ref(fn));
  }

  void linear(LinearArgs args) {
    prepare(args);
    parallel(args.w->num_panels(), 1, [&](int64_t begin, int64_t end, int) { kernels.linear(args, begin, end); });
  }

  // Only those columns.
  void linear_panels(LinearArgs args, const std::vector<int64_t>& panels) {
    prepare(args);
    parallel(static_cast<int64_t>(panels.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (auto p = panels.begin() + begin; p != panels.begin() + end; ++p) kernels.linear(args, *p, *p + 1);
    });
  }

  // y (m, N) = act(x (m, K) W^T + bias) + residual; rows are dense.
  void linear(const float* x, int64_t m, const PackedLinear& w, float* y, Activation act = Activation::none,
              const float* residual = nullptr) {
    linear({x, w.k, nullptr, m, &w, act, residual, y, w.n});
  }

  // Floats from one row of an MLP's inner values to the next: rows a multiple of 4 KB apart would meet in a few sets of
  // the cache.
  static int64_t wide_stride(int64_t intermediate) { return intermediate + 16; }

  // x (rows, D) += fc2(act(fc1(in (rows, D)))); `wide` (rows, wide_stride) is workspace, and `in` may be x.
  void mlp(const float* in, int64_t rows, const PackedLinear& fc1, Activation act, const PackedLinear& fc2, float* wide,
           float* x) {
    const int64_t stride = wide_stride(fc1.n);
    linear({in, fc1.k, nullptr, rows, &fc1, act, nullptr, wide, stride});
    linear({wide, stride, nullptr, rows, &fc2, Activation::none, x, x, fc2.n});
  }

  // y = norm(x) over dense rows (rows, d); y may be x.
  void norm(const float* x, int64_t rows, const Norm& n, float* y) const {
    constexpr int64_t kRowsPerPart = 8;  // fewer cost less than waking a thread
    const int64_t d = n.size();
    parallel(rows, kRowsPerPart, [&](int64_t begin, int64_t end, int) {
      const float *gamma = n.gamma.floats(), *beta = n.beta.floats();
      kernels.layer_norm({x + begin * d, d, end - begin, d, gamma, beta, n.eps, y + begin * d, d});
    });
  }

  const Kernels& kernels;
  ThreadPool& pool;

 private:
  void prepare(LinearArgs& args) {
    if (const Kernels::Rounding rounding = kernels.rounding(args.w->format, args.m))
      args.rounded = rounded(args, rounding);
  }

  const uint32_t* rounded(const LinearArgs& args, Kernels::Rounding rounding) {
    const int64_t k = args.w->k, words = kernels.words_of_row(args.w->format, k);
    const auto bytes = static_cast<size_t>((args.m + kRoundedPadding) * words) * sizeof(uint32_t);
    if (rounded_.bytes() < bytes) rounded_ = Buffer(bytes);
    auto* pairs = static_cast<uint32_t*>(rounded_.data());
    parallel((args.m + kTileSide - 1) / kTileSide, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t row = begin * kTileSide, rows = std::min(end * kTileSide, args.m) - row;
      rounding(args.x + row * args.x_stride, args.x_stride, rows, k, pairs + row * words);
    });
    return pairs;
  }

  Buffer rounded_;
};

}  // namespace gitfast::cpu
