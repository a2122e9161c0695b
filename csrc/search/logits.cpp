#include "logits.h"

#include <cmath>
#include <cstring>
#include <string>

#include "tensor.h"

namespace gitfast::search {
namespace {

// Four lanes, which every supported CPU has: the compiler may not reorder a sum or a maximum of floats by itself.
constexpr int kLanes = 4;
typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

V4 load(const float* p) {
  V4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// exp(x) for x <= 0, relative error below 2e-7; 0 below -87.
V4 exp_of_negative(V4 x) {
  const V4 floor = V4{} - 87.f;
  const V4 t = x > floor ? x : floor;
  const V4 shift = V4{} + 12582912.f;
  const V4 n = (t * 1.44269504f + shift) - shift;
  const V4 r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  V4 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const I4 exponent = (__builtin_convertvector(n, I4) + 127) << 23;
  V4 scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return x > floor ? p * scale : V4{};
}

float largest(const float* x, int64_t n) {
  V4 top = V4{} - INFINITY;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V4 v = load(x + i);
    top = v > top ? v : top;
  }
  float best = -INFINITY;
  for (int j = 0; j < kLanes; ++j) best = top[j] > best ? top[j] : best;
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

}  // namespace

float log_sum_exp(const float* x, int64_t n, int64_t row) {
  const float top = largest(x, n);
  if (!std::isfinite(top)) throw Error("logits: row " + std::to_string(row) + " has no finite value");
  double sum = 0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    constexpr int64_t kBlock = 512;  // float32 sums of this many terms, then double
    const int64_t stop = i + kBlock < n ? i + kBlock : n;
    V4 part = {};
    V4 bad = {};
    for (; i + kLanes <= stop; i += kLanes) {
      const V4 v = load(x + i);
      bad += v - v == V4{} ? V4{} : (v < V4{} ? V4{} : V4{} + 1.f);  // NaN or +inf; -inf may be a ban
      part += exp_of_negative(v - top);
    }
    for (int j = 0; j < kLanes; ++j) sum += part[j] + (bad[j] > 0 ? static_cast<double>(NAN) : 0.0);
  }
  for (; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - top);
  if (std::isnan(sum)) throw Error("logits: NaN in row " + std::to_string(row));
  return top + static_cast<float>(std::log(sum));
}

int32_t argmax(const float* x, int64_t n) {
  const float top = largest(x, n);
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == top) return static_cast<int32_t>(i);
  return 0;
}

}  // namespace gitfast::search
