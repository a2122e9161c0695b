// Resampling of pictures in the arithmetic of Pillow, with cropping and normalising in the same pass.
#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace gitfast::image {
namespace {

// Pillow rounds a weight to 22 bits after the point, adds products with bytes in 32 bits, and rounds each of its two
// passes, first along rows, to bytes.
constexpr int kWeightBits = 22;
constexpr int32_t kHalf = 1 << (kWeightBits - 1);
// A weight is low + (high << 12), so that both parts fit 16 bits and sums of their products stay exact.
constexpr int kLowBits = 12;
constexpr int64_t kPixel = 4;    // bytes of a pixel within
constexpr int64_t kVector = 16;  // bytes

double support_of(Filter filter) {
  switch (filter) {
    case Filter::box:
      return 0.5;
    case Filter::bilinear:
      return 1.0;
    default:
      return 2.0;
  }
}

double weight_at(Filter filter, double x) {
  if (filter == Filter::box) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
  x = std::abs(x);
  if (filter == Filter::bilinear) return x < 1.0 ? 1.0 - x : 0.0;
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// The inputs of one output: `count` from `first` on, and their weights.
struct Window {
  int64_t first = 0, count = 0;
  size_t weights = 0;  // place of the first pair
};

// Two neighbouring weights, in halves.
struct Pair {
  int16_t low[2] = {}, high[2] = {};
};

struct Axis {
  std::vector<Window> windows;  // empty: outputs are inputs
  std::vector<Pair> pairs;
  int64_t most = 1;

  // Outputs [begin, end) of `size`, of `inputs`.
  Axis(Filter filter, int64_t inputs, int64_t size, int64_t begin, int64_t end) {
    if (inputs == size) return;
    const double scale = static_cast<double>(static_cast<float>(inputs)) / static_cast<double>(size);
    const double stretch = std::max(scale, 1.0), support = support_of(filter) * stretch, step = 1.0 / stretch;
    std::vector<double> weights;
    for (int64_t i = begin; i < end; ++i) {
      const double centre = (static_cast<double>(i) + 0.5) * scale;
      const auto first = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
      const auto last = std::min(inputs, static_cast<int64_t>(centre + support + 0.5));
      const Window window{first, last - first, pairs.size()};
      double sum = 0;
      weights.clear();
      for (int64_t x = first; x < last; ++x) {
        weights.push_back(weight_at(filter, (static_cast<double>(x) - centre + 0.5) * step));
        sum += weights.back();
      }
      pairs.resize(pairs.size() + static_cast<size_t>(window.count + 1) / 2);
      for (size_t x = 0; x < weights.size(); ++x) {
        const double weight = (sum != 0 ? weights[x] / sum : weights[x]) * (1 << kWeightBits);
        const auto rounded = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
        Pair& pair = pairs[window.weights + x / 2];
        pair.low[x % 2] = static_cast<int16_t>(rounded & ((1 << kLowBits) - 1));
        pair.high[x % 2] = static_cast<int16_t>(rounded >> kLowBits);
      }
      windows.push_back(window);
      most = std::max(most, window.count);
    }
  }

  const Pair* weights(const Window& window) const { return pairs.data() + window.weights; }
};

#if defined(__SSE2__)

__m128i load_pixel(const uint8_t* pixel) {
  int32_t bytes;
  std::memcpy(&bytes, pixel, sizeof bytes);
  return _mm_cvtsi32_si128(bytes);
}

__m128i both(const int16_t* weights) {
  int32_t two;
  std::memcpy(&two, weights, sizeof two);
  return _mm_set1_epi32(two);
}

// Sums of products of neighbouring 16-bit numbers with two weights.
struct Sum {
  __m128i low = _mm_set1_epi32(kHalf), high = _mm_setzero_si128();

  void add(__m128i values, __m128i low_weights, __m128i high_weights) {
    low = _mm_add_epi32(low, _mm_madd_epi16(values, low_weights));
    high = _mm_add_epi32(high, _mm_madd_epi16(values, high_weights));
  }
  __m128i rounded() const { return _mm_srai_epi32(_mm_add_epi32(low, _mm_slli_epi32(high, kLowBits)), kWeightBits); }
};

void resample_pixel(const uint8_t* pixels, int64_t count, const Pair* weights, uint8_t* out) {
  const __m128i zero = _mm_setzero_si128();
  Sum sum;
  for (int64_t x = 0; x < count; x += 2, ++weights) {
    const __m128i next = x + 1 < count ? load_pixel(pixels + (x + 1) * kPixel) : zero;
    const __m128i channels = _mm_unpacklo_epi8(_mm_unpacklo_epi8(load_pixel(pixels + x * kPixel), next), zero);
    sum.add(channels, both(weights->low), both(weights->high));
  }
  const __m128i words = _mm_packs_epi32(sum.rounded(), zero);
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, zero));
  std::memcpy(out, &bytes, sizeof bytes);
}

// rows(y): row y of the window, `bytes` long, a multiple of kVector.
template <class Rows>
void resample_rows(const Rows& rows, int64_t count, const Pair* weights, int64_t bytes, uint8_t* out) {
  const __m128i zero = _mm_setzero_si128();
  for (int64_t i = 0; i < bytes; i += kVector) {
    Sum sums[4];
    for (int64_t y = 0; y < count; y += 2) {
      const __m128i row = _mm_load_si128(reinterpret_cast<const __m128i*>(rows(y) + i));
      const __m128i next = y + 1 < count ? _mm_load_si128(reinterpret_cast<const __m128i*>(rows(y + 1) + i)) : zero;
      const __m128i first = _mm_unpacklo_epi8(row, next), second = _mm_unpackhi_epi8(row, next);
      const __m128i low = both(weights[y / 2].low), high = both(weights[y / 2].high);
      sums[0].add(_mm_unpacklo_epi8(first, zero), low, high);
      sums[1].add(_mm_unpackhi_epi8(first, zero), low, high);
      sums[2].add(_mm_unpacklo_epi8(second, zero), low, high);
      sums[3].add(_mm_unpackhi_epi8(second, zero), low, high);
    }
    const __m128i begin = _mm_packs_epi32(sums[0].rounded(), sums[1].rounded());
    const __m128i end = _mm_packs_epi32(sums[2].rounded(), sums[3].rounded());
    _mm_store_si128(reinterpret_cast<__m128i*>(out + i), _mm_packus_epi16(begin, end));
  }
}

#else

int32_t weight(const Pair* pairs, int64_t i) {
  return pairs[i / 2].low[i % 2] + pairs[i / 2].high[i % 2] * (1 << kLowBits);
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

void resample_pixel(const uint8_t* pixels, int64_t count, const Pair* weights, uint8_t* out) {
  int32_t sums[kPixel] = {kHalf, kHalf, kHalf, kHalf};
  for (int64_t x = 0; x < count; ++x)
    for (int64_t c = 0; c < kPixel; ++c) sums[c] += pixels[x * kPixel + c] * weight(weights, x);
  for (int64_t c = 0; c < kPixel; ++c) out[c] = rounded(sums[c]);
}

template <class Rows>
void resample_rows(const Rows& rows, int64_t count, const Pair* weights, int64_t bytes, uint8_t* out) {
  for (int64_t i = 0; i < bytes; ++i) {
    int32_t sum = kHalf;
    for (int64_t y = 0; y < count; ++y) sum += rows(y)[i] * weight(weights, y);
    out[i] = rounded(sum);
  }
}

#endif

struct alignas(kVector) Vector {
  uint8_t bytes[kVector];
};

// One picture on its way: rows are resized as the windows of the columns come to need them, and kept as long.
class Resampling {
 public:
  Resampling(const Picture& picture, const Target& target)
      : picture_(picture),
        target_(target),
        left_(std::clamp<int64_t>(target.left, 0, target.width)),
        right_(std::clamp<int64_t>(target.left + target.crop_width, left_, target.width)),
        top_(std::clamp<int64_t>(target.top, 0, target.height)),
        bottom_(std::clamp<int64_t>(target.top + target.crop_height, top_, target.height)),
        columns_(target.filter, picture.width, target.width, left_, right_),
        rows_(target.filter, picture.height, target.height, top_, bottom_),
        vectors_((width() * kPixel + kVector - 1) / kVector),
        ring_(static_cast<size_t>(rows_.most * vectors_)),
        result_(static_cast<size_t>(vectors_)),
        wide_(picture.pixel_bytes == kPixel ? 0 : static_cast<size_t>(picture.width * kPixel)) {}

  // write(y, x, pixel, pixels): row y of the crop, from column x on.
  template <class Write>
  void run(const Write& write) {
    if (width() == 0) return;
    for (int64_t y = top_; y < bottom_; ++y) write(y - target_.top, left_ - target_.left, row(y), width());
  }

 private:
  int64_t width() const { return right_ - left_; }
  uint8_t* kept(int64_t y) { return ring_[static_cast<size_t>(y % rows_.most * vectors_)].bytes; }

  const uint8_t* row(int64_t y) {
    if (rows_.windows.empty()) {
      resize_row(y);
      return kept(y);
    }
    const Window& window = rows_.windows[static_cast<size_t>(y - top_)];
    next_ = std::max(next_, window.first);
    for (; next_ < window.first + window.count; ++next_) resize_row(next_);
    resample_rows([&](int64_t i) { return kept(window.first + i); }, window.count, rows_.weights(window),
                  vectors_ * kVector, result_[0].bytes);
    return result_[0].bytes;
  }

  void resize_row(int64_t y) {
    const uint8_t* pixels = with_fourth_byte(picture_.pixels + y * picture_.stride);
    uint8_t* out = kept(y);
    if (columns_.windows.empty()) {
      std::memcpy(out, pixels + left_ * kPixel, static_cast<size_t>(width() * kPixel));
      return;
    }
    for (const Window& window : columns_.windows) {
      resample_pixel(pixels + window.first * kPixel, window.count, columns_.weights(window), out);
      out += kPixel;
    }
  }

  const uint8_t* with_fourth_byte(const uint8_t* row) {
    if (wide_.empty()) return row;
    for (int64_t x = 0; x < picture_.width; ++x)
      std::memcpy(wide_.data() + x * kPixel, row + x * picture_.pixel_bytes, static_cast<size_t>(picture_.pixel_bytes));
    return wide_.data();
  }

  const Picture picture_;
  const Target target_;
  const int64_t left_, right_, top_, bottom_;  // of the crop within the resized picture
  const Axis columns_, rows_;
  const int64_t vectors_;  // of a row
  std::vector<Vector> ring_, result_;
  std::vector<uint8_t> wide_;
  int64_t next_ = 0;  // row of the picture
};

}  // namespace

void resample(const Picture& picture, const Target& target, uint8_t* out) {
  std::fill_n(out, target.crop_height * target.crop_width * 3, uint8_t{0});
  Resampling(picture, target).run([&](int64_t y, int64_t x, const uint8_t* pixels, int64_t count) {
    uint8_t* row = out + (y * target.crop_width + x) * 3;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < 3; ++c) row[i * 3 + c] = pixels[i * kPixel + c];
  });
}

void resample(const Picture& picture, const Target& target, const float* values, float* out) {
  const int64_t plane = target.crop_height * target.crop_width;
  for (int64_t c = 0; c < 3; ++c) std::fill_n(out + c * plane, plane, values[c * 256]);
  Resampling(picture, target).run([&](int64_t y, int64_t x, const uint8_t* pixels, int64_t count) {
    for (int64_t c = 0; c < 3; ++c) {
      float* row = out + c * plane + y * target.crop_width + x;
      for (int64_t i = 0; i < count; ++i) row[i] = values[c * 256 + pixels[i * kPixel + c]];
    }
  });
}

}  // namespace gitfast::image
