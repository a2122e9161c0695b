// Checks of the pixels and token ids that a model takes, one for all engines.
#pragma once

#include <cstdint>
#include <vector>

#include "vision.h"

namespace gitfast::cpu {

struct PixelLimits {
  int64_t image_size, patch_size;
  int64_t num_frames;  // 0: the model reads single images
};

// Throws Error naming pixel_values.
void check_pixels(const PixelBatch& pixels, const PixelLimits& limits);

struct TextLimits {
  int64_t vocab_size, max_positions;
};

// `name` is the argument that holds `ids`; each row must leave room for `new_tokens` more, the last of which is not
// run.
void check_texts(const std::vector<std::vector<int32_t>>& ids, const char* name, int64_t new_tokens,
                 const TextLimits& limits);

}  // namespace gitfast::cpu
