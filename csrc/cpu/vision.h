// Pixels to image tokens: the CLIP vision transformer, the temporal embedding of clips, and the projection.
#pragma once

#include <vector>

#include "compute.h"
#include "model.h"
#include "prefix.h"

namespace gitfast::cpu {

// Images or clips of one size, (images, frames, 3, height, width) float32, normalised.
struct PixelBatch {
  const float* data = nullptr;
  int64_t images = 0;
  int64_t frames = 1;
  int64_t height = 0;
  int64_t width = 0;
  bool interpolate_positions = false;  // take sizes other than the model's
  bool temporal = false;               // clips get the embedding of each frame's time; a single image gets none

  int64_t num_frames() const { return images * frames; }
  int64_t image_floats() const { return frames * 3 * height * width; }
  PixelBatch part(int64_t first, int64_t count) const {
    PixelBatch p = *this;
    p.data += first * image_floats();
    p.images = count;
    return p;
  }
};

// Tokens of one frame: the class token and one per whole patch.
inline int64_t frame_tokens(const VisionConfig& config, const PixelBatch& pixels) {
  return 1 + (pixels.height / config.patch_size) * (pixels.width / config.patch_size);
}

// The vision transformer over one batch, a layer at a time, so that other work can go between.
class VisionPass {
 public:
  // Embeds the pixels, which are not read again.
  VisionPass(Compute& compute, const VisionConfig& config, const VisionWeights& weights, const PixelBatch& pixels);

  bool layers_left() const { return next_ < weights_.layers.size(); }
  void run_layer();
  // Features (images, frames * N, Dv) after the last norm and the temporal embedding.
  Buffer finish();

 private:
  Compute& compute_;
  const VisionConfig& config_;
  const VisionWeights& weights_;
  const PixelBatch shape_;
  const int64_t frame_tokens_, rows_;  // rows: those of all frames
  Buffer x_, normed_, wide_;
  std::vector<KeyValues> frames_;
  std::vector<KeyValues*> groups_;
  size_t next_ = 0;
};

// Features (rows, Dv) -> image tokens (rows, D), the decoder's input.
Buffer project(Compute& compute, const VisionWeights& weights, const Buffer& features, int64_t rows);

}  // namespace gitfast::cpu
