// The shapes of a GIT model and the source of its weights: what the CPU engine is built from.
#pragma once

#include <functional>
#include <string>

#include "tensor.h"

namespace gitfast {

struct VisionConfig {
  int64_t hidden_size = 768;
  int64_t intermediate_size = 3072;
  int64_t num_layers = 12;
  int64_t num_heads = 12;
  int64_t image_size = 224;
  int64_t patch_size = 16;
  float layer_norm_eps = 1e-5f;

  int64_t head_dim() const { return hidden_size / num_heads; }
  int64_t grid_size() const { return image_size / patch_size; }
  int64_t num_tokens() const { return 1 + grid_size() * grid_size(); }
};

struct ModelConfig {
  VisionConfig vision;
  int64_t vocab_size = 30522;
  int64_t hidden_size = 768;
  int64_t intermediate_size = 3072;
  int64_t num_layers = 6;
  int64_t num_heads = 12;
  int64_t max_positions = 1024;
  float layer_norm_eps = 1e-12f;
  int64_t num_frames = 0;  // frames with a temporal embedding; 0 for image checkpoints

  int64_t head_dim() const { return hidden_size / num_heads; }
};

// Yields the tensor of a Hugging Face state-dict name; the view is valid until the next call. Throws Error when
// the checkpoint has no such tensor.
using WeightSource = std::function<TensorView(const std::string& name)>;

}  // namespace gitfast
