// The model's weights in the layouts the kernels read. Built once; immutable after.
#pragma once

#include <utility>
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
  Buffer scales;  // (n), or empty
  Buffer bias;    // (n), or empty
  PackedLinear view;

  size_t bytes() const { return panels.bytes() + scales.bytes() + bias.bytes(); }
};

// Rows of a table (rows, d), of which few are read at a time: float32, or bfloat16 beside weights of fewer bits.
class Embedding {
 public:
  Embedding() = default;
  Embedding(Buffer values, int64_t d, bool is_bf16) : values_(std::move(values)), d_(d), is_bf16_(is_bf16) {}

  void read(int64_t row, float* out) const;
  size_t bytes() const { return values_.bytes(); }

 private:
  Buffer values_;
  int64_t d_ = 0;
  bool is_bf16_ = false;
};

struct VisionLayer {
  Norm attention_norm, mlp_norm;
  Linear qkv, out, fc1, fc2;
};

struct VisionWeights {
  WeightFormat keys_values = WeightFormat::f32;  // what those of the image are stored in
  Linear patch;                                  // (Dv, 3 * patch * patch), no bias
  Buffer class_embedding;                        // (Dv)
  Buffer positions;                              // (N, Dv)
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
  WeightFormat keys_values = WeightFormat::f32;
  Embedding words;   // (V, D)
  Buffer positions;  // (max_positions, D)
  Norm embedding_norm;
  std::vector<DecoderLayer> layers;
  Linear head;  // (V, D)

  size_t bytes() const;
};

// Read every tensor once and store the matrices in `format`; vectors stay float32. Throw Error naming the tensor whose
// shape or dtype does not suit the configuration.
VisionWeights load_vision(const ModelConfig& config, const WeightSource& source, WeightFormat format, ThreadPool& pool);
DecoderWeights load_decoder(const ModelConfig& config, const WeightSource& source, WeightFormat format,
                            ThreadPool& pool);

}  // namespace gitfast::cpu
