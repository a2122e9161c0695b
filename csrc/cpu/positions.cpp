// Position embeddings resized to images of other sizes.
#include "positions.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

namespace gitfast::cpu {
namespace {

constexpr int kTaps = 4;

// The inputs one output is made of.
struct Taps {
  std::array<int64_t, kTaps> index;
  std::array<float, kTaps> weight;
};

// Keys' cubic convolution kernel at a distance of `x` samples; a = -0.75 as torch and OpenCV choose.
float cubic(float x) {
  constexpr float a = -0.75f;
  x = std::abs(x);
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0;
}

std::vector<Taps> taps(int64_t inputs, int64_t outputs) {
  const float scale = static_cast<float>(inputs) / static_cast<float>(outputs);
  std::vector<Taps> all(static_cast<size_t>(outputs));
  for (int64_t o = 0; o < outputs; ++o) {
    const float at = scale * (static_cast<float>(o) + 0.5f) - 0.5f;
    const float below = std::floor(at);
    for (int i = 0; i < kTaps; ++i) {
      const int64_t index = static_cast<int64_t>(below) + i - 1;
      all[static_cast<size_t>(o)].index[static_cast<size_t>(i)] = std::clamp<int64_t>(index, 0, inputs - 1);
      all[static_cast<size_t>(o)].weight[static_cast<size_t>(i)] = cubic(at - below - static_cast<float>(i - 1));
    }
  }
  return all;
}

}  // namespace

Buffer interpolate_positions(const float* table, int64_t side, int64_t d, int64_t rows, int64_t columns) {
  Buffer out(static_cast<size_t>((1 + rows * columns) * d) * sizeof(float));
  const float* grid = table + d;
  float* to = std::copy_n(table, d, out.floats());
  const std::vector<Taps> across = taps(side, columns);
  for (const Taps& down : taps(side, rows))
    for (const Taps& along : across)
      for (int64_t i = 0; i < d; ++i) {
        float sum = 0;
        for (size_t r = 0; r < kTaps; ++r) {
          float line = 0;
          for (size_t c = 0; c < kTaps; ++c)
            line += along.weight[c] * grid[(down.index[r] * side + along.index[c]) * d + i];
          sum += down.weight[r] * line;
        }
        *to++ = sum;
      }
  return out;
}

}  // namespace gitfast::cpu
