// Arithmetic over one row of logits: maxima, sums of exponentials, log-probabilities.
#include "logits.h"

#include <algorithm>
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

V4 max(V4 a, V4 b) { return b > a ? b : a; }

// exp(x) for x <= 0; 0 below -87. x = n ln2 + r, |r| <= ln2 / 2, and a polynomial in r (Cephes expf).
V4 exp_of_negative(V4 x) {
  const V4 floor = V4{} - 87.f;
  const V4 t = x < floor ? floor : x;  // NaN stays
  const V4 shift = V4{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
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
  return x < floor ? V4{} : p * scale;
}

}  // namespace

float largest(const float* x, int64_t n) {
  V4 top[4];
  for (V4& t : top) t = V4{} - INFINITY;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) top[j] = max(top[j], load(x + i + j * kLanes));
  const V4 all = max(max(top[0], top[1]), max(top[2], top[3]));
  float best = -INFINITY;
  for (int j = 0; j < kLanes; ++j) best = all[j] > best ? all[j] : best;
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

int32_t argmax(const float* x, int64_t n) {
  const float top = largest(x, n);
  return static_cast<int32_t>(std::find(x, x + n - 1, top) - x);
}

double exp_sum(const float* x, int64_t n, float top, float* out) {
  constexpr int64_t kBlock = 512;  // sums of so many terms in float32, then double
  double sum = 0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    const int64_t stop = std::min(i + kBlock, n);
    V4 part = {};
    for (; i + kLanes <= stop; i += kLanes) {
      const V4 e = exp_of_negative(load(x + i) - top);
      if (out) std::memcpy(out + i, &e, sizeof e);
      part += e;
    }
    for (int j = 0; j < kLanes; ++j) sum += static_cast<double>(part[j]);
  }
  for (; i < n; ++i) {
    const float e = exp_of_negative(V4{} + (x[i] - top))[0];
    if (out) out[i] = e;
    sum += static_cast<double>(e);
  }
  return sum;
}

Normalizer normalizer(const float* x, int64_t n, int64_t row) {
  const auto fail = [&](const char* what) {
    throw Error(std::string("logits: ") + what + " in row " + std::to_string(row));
  };
  const float top = largest(x, n);
  if (top == INFINITY) fail("+inf");
  const double sum = top > -INFINITY ? exp_sum(x, n, top, nullptr) : static_cast<double>(NAN);
  if (std::isnan(sum)) fail(std::any_of(x, x + n, [](float v) { return std::isnan(v); }) ? "NaN" : "nothing but -inf");
  return {top, std::log(sum)};
}

void log_softmax(const float* x, int64_t n, const Normalizer& normalizer, float* out) {
  const float top = normalizer.top, log_sum = static_cast<float>(normalizer.log_sum);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] - top - log_sum;
}

}  // namespace gitfast::search
