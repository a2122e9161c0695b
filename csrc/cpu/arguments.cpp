// Checks of pixels and token ids: the error texts of every engine.
#include "arguments.h"

#include <algorithm>
#include <string>

#include "tensor.h"

namespace gitfast::cpu {

void check_pixels(const PixelBatch& p, const PixelLimits& limits) {
  if (p.images < 1 || p.frames < 1) throw Error("pixel_values: expected at least one image and one frame");
  const std::string got = std::to_string(p.height) + "x" + std::to_string(p.width);
  const std::string size = std::to_string(limits.image_size);
  if (!p.interpolate_positions && (p.height != limits.image_size || p.width != limits.image_size))
    throw Error("pixel_values: expected images of " + size + "x" + size + ", got " + got +
                "; interpolate_positions takes other sizes");
  if (std::min(p.height, p.width) < limits.patch_size)
    throw Error("pixel_values: expected images of at least one patch, " + std::to_string(limits.patch_size) +
                " pixels, got " + got);
  if (p.temporal && limits.num_frames == 0)
    throw Error("pixel_values: expected (B, 3, H, W), got a clip (B, T, 3, H, W); the checkpoint is not a video model");
  if (p.temporal && p.frames > limits.num_frames)
    throw Error("pixel_values: expected clips of at most " + std::to_string(limits.num_frames) + " frames, got " +
                std::to_string(p.frames));
}

void check_texts(const std::vector<std::vector<int32_t>>& texts, const char* name, int64_t new_tokens,
                 const TextLimits& limits) {
  for (size_t r = 0; r < texts.size(); ++r) {
    const std::string where = std::string(name) + "[" + std::to_string(r) + "]: ";
    if (texts[r].empty()) throw Error(where + "expected at least one token id");
    const auto length = static_cast<int64_t>(texts[r].size());
    if (length + std::max<int64_t>(new_tokens - 1, 0) > limits.max_positions)
      throw Error(where + std::to_string(length) + " tokens" +
                  (new_tokens ? " and " + std::to_string(new_tokens) + " new ones" : "") + " exceed the model's " +
                  std::to_string(limits.max_positions) + " text positions");
    for (int32_t id : texts[r])
      if (id < 0 || id >= limits.vocab_size)
        throw Error(where + "token id " + std::to_string(id) + " is outside the vocabulary of " +
                    std::to_string(limits.vocab_size));
  }
}

}  // namespace gitfast::cpu
