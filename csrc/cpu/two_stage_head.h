// The largest logits exactly, from a quarter or half of the bytes: all scores from an int8 copy of the head, then those
// columns again from the head itself that the first stage's error bound cannot rule out.
#pragma once

#include "compute.h"

namespace gitfast::cpu {

class TwoStageHead {
 public:
  // Copies the head (V, D), which must outlive this. `kernels` are those that logits will be computed with.
  TwoStageHead(const PackedLinear& head, const Kernels& kernels, ThreadPool& pool);

  // Logits (rows, V) of x (rows, D). In every row the `count` largest are those of the head, to the bit, and so is
  // their order; the others are below them, and off by what int8 loses.
  void logits(Compute& compute, const float* x, int64_t rows, int64_t count, float* out) const;

  size_t bytes() const { return panels_.bytes() + scales_.bytes() + errors_.bytes(); }

 private:
  const PackedLinear& head_;
  PackedLinear quick_;
  Buffer panels_, scales_;
  Buffer errors_;  // (V): the score of column j is off by at most errors[j] * |x|, Euclidean
};

}  // namespace gitfast::cpu
