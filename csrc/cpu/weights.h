// The model's weights in the layouts the kernels read. Built once; immutable after.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "model.h"
#include "threads.h"

namespace gitfast::cpu {

struct Norm {
  Buffer gamma;  // (d)
  Buffer beta;
  float eps = 0;

  int64_t size() const { return static_cast<int64_t>(gamma.bytes() / sizeof(float)); }
};

// One or several linear layers over the same input, their outputs side by side.
struct Linear {
  Buffer panels;
  Buffer bias;  // (n), or empty
  PackedLinear view;

  size_t bytes() const { return panels.bytes() + bias.bytes(); }
};

struct VisionLayer {
  Norm attention_norm, mlp_norm;
  Linear qkv, out, fc1, fc2;
};

struct VisionWeights {
  Linear patch;            // (Dv, 3 * patch * patch), no bias
  Buffer class_embedding;  // (Dv)
  Buffer positions;        // (N, Dv)
  Norm pre_norm, post_norm;
  std::vector<VisionLayer> layers;
  Buffer temporal;    // (frames, Dv), empty for image checkpoints
  Linear projection;  // (D, Dv)
  Norm projection_norm;

  size_t bytes() const;
};

struct DecoderLayer {
  Linear qkv, out, fc1, fc2;
  Norm attention_norm, output_norm;
};

struct DecoderWeights {
  Buffer words;      // (V, D)
  Buffer positions;  // (max_positions, D)
  Norm embedding_norm;
  std::vector<DecoderLayer> layers;
  Linear head;  // (V, D)

  size_t bytes() const;
};

// Read every tensor once. Throw Error naming the tensor whose shape or dtype does not suit the configuration.
VisionWeights load_vision(const ModelConfig& config, const WeightSource& source, ThreadPool& pool);
DecoderWeights load_decoder(const ModelConfig& config, const WeightSource& source, ThreadPool& pool);

}  // namespace gitfast::cpu
