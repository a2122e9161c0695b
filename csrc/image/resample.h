// From a decoded picture to the pixels of a model: resized as Pillow does it, to the bit, cropped and normalised in one
// pass over the rows that the crop needs.
#pragma once

#include <cstdint>

namespace gitfast::image {

enum class Filter : uint8_t { box, bilinear, bicubic };

// A picture of 3 (RGB) or 4 (RGB and a byte that nobody reads) bytes per pixel, its rows `stride` bytes apart.
struct Picture {
  const uint8_t* pixels;
  int64_t width, height, pixel_bytes, stride;
};

// The picture is resized to width x height, and (crop_height, crop_width) cut out at (top, left); what lies outside is
// zero.
struct Target {
  Filter filter;
  int64_t width, height;
  int64_t top, left, crop_height, crop_width;
};

// Writes bytes (crop_height, crop_width, 3).
void resample(const Picture& picture, const Target& target, uint8_t* out);
// Writes float32 (3, crop_height, crop_width): `values` (3, 256) of each channel's bytes.
void resample(const Picture& picture, const Target& target, const float* values, float* out);

}  // namespace gitfast::image
