// Arithmetic over one row of logits (V): the parts of search that touch every value.
#pragma once

#include <cstdint>

namespace gitfast::search {

// The largest value; NaN is passed over, and nothing else gives -inf.
float largest(const float* x, int64_t n);

// The first of the largest values, as torch.argmax.
int32_t argmax(const float* x, int64_t n);

// out[i] = exp(x[i] - top) for x[i] <= top, relative error below 3e-7; returns their sum. NaN in x makes the sum NaN.
// `out` may be null.
double exp_sum(const float* x, int64_t n, float top, float* out);

// A row's log-softmax is (x - top) - log_sum.
struct Normalizer {
  float top;
  double log_sum;

  float log_probability(float x) const { return static_cast<float>(static_cast<double>(x) - top - log_sum); }
};

// Throws Error when x holds NaN or +inf, or nothing but -inf: "logits: NaN in row <row>".
Normalizer normalizer(const float* x, int64_t n, int64_t row);

// out = log-softmax of x, rounded as torch rounds it in float32.
void log_softmax(const float* x, int64_t n, const Normalizer& normalizer, float* out);

}  // namespace gitfast::search
