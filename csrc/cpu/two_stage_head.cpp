// The largest logits exactly, from int8 scores first.
#include "two_stage_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

namespace gitfast::cpu {
namespace {

// Bounds of |sum of products - its exact value|, in units of |w| |x|: the rounding of x where scores and logits do not
// read it alike, to bfloat16 (2^-8 of each element) or to whole numbers (at most 2^-10 of each block's norm) or to
// both; and in scores and logits the rounding of sums, at most 2^-24 for each of some 300 additions in a chain. Below
// |w| counts twice, as it is and as int8 has it: that leaves room for both ways of rounding x, and for the bounds' own.
constexpr double kRoundingOfX = 0x1p-8, kRoundingOfSums = 0x1p-13;

double norm(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

// Adding a bias rounds too, in units of the result; the part below |w| |x| is covered by those errors.
constexpr float kRoundingOfScore = 0x1p-20f;

float error_of(float score, float error, float x_norm) { return error * x_norm + kRoundingOfScore * std::abs(score); }

// The count-th largest of the values that are surely reached, score - error.
float sure_threshold(const float* scores, const float* errors, float x_norm, int64_t n, int64_t count,
                     std::vector<float>& heap) {
  heap.clear();  // the largest so far, the smallest in front
  for (int64_t j = 0; j < n; ++j) {
    const float low = scores[j] - error_of(scores[j], errors[j], x_norm);
    if (static_cast<int64_t>(heap.size()) < count) {
      heap.push_back(low);
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    } else if (low > heap.front()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.back() = low;
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
  return heap.front();
}

}  // namespace

TwoStageHead::TwoStageHead(const PackedLinear& head, const Kernels& kernels, ThreadPool& pool) : head_(head) {
  const int64_t n = head.n, k = head.k;
  quick_ = {n, k, WeightFormat::int8};
  panels_ = Buffer(static_cast<size_t>(quick_.num_panels() * quick_.panel_words()) * sizeof(uint32_t));
  std::memset(panels_.data(), 0, panels_.bytes());
  scales_ = float_buffer(n);
  errors_ = float_buffer(n);
  quick_.panels = panels_.data();
  quick_.scales = scales_.floats();
  quick_.bias = head.bias;
  const bool alike = kernels.rounding(head.format, 1) == kernels.rounding(quick_.format, 1);
  const double rounding = (alike ? 0 : kRoundingOfX) + kRoundingOfSums;
  pool.parallel_for(head.num_panels(), 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> columns(static_cast<size_t>(kPanel * k)), quick(columns.size());
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPanel, width = std::min(kPanel, n - first);
      unpack_panel(head, p, columns.data());
      pack_linear_rows(columns.data(), false, width, k, first, WeightFormat::int8, panels_.data(), scales_.floats());
      unpack_panel(quick_, p, quick.data());
      for (int64_t j = 0; j < width; ++j) {
        float *exact = columns.data() + j * k, *off = quick.data() + j * k;
        const double size = norm(exact, k) + norm(off, k);
        for (int64_t i = 0; i < k; ++i) off[i] -= exact[i];
        errors_.floats()[first + j] = static_cast<float>(norm(off, k) + rounding * size);
      }
    }
  });
}

void TwoStageHead::logits(Compute& compute, const float* x, int64_t rows, int64_t count, float* out) const {
  const int64_t n = head_.n, k = head_.k;
  count = std::min(count, n);
  compute.linear(x, rows, quick_, out);
  std::vector<float> heap;
  std::vector<int64_t> panels;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * k;
    float* scores = out + r * n;
    const auto x_norm = static_cast<float>(norm(row, k) * (1 + 1e-6));
    const float* errors = errors_.floats();
    const float threshold = sure_threshold(scores, errors, x_norm, n, count, heap);
    panels.clear();
    for (int64_t j = 0; j < n; ++j)
      if (scores[j] + error_of(scores[j], errors[j], x_norm) >= threshold &&
          (panels.empty() || panels.back() != j / kPanel))
        panels.push_back(j / kPanel);
    LinearArgs args;
    args.x = row;
    args.x_stride = k;
    args.m = 1;
    args.w = &head_;
    args.y = scores;
    args.y_stride = n;
    compute.linear_panels(args, panels);
  }
}

}  // namespace gitfast::cpu
