// Encoding a batch of images in slices, a layer each, so that steps of text can go between.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "compute.h"
#include "decoder.h"
#include "model.h"
#include "vision.h"
#include "weights.h"

namespace gitfast::cpu {

// The parts of an engine that encoding needs; the engine must outlive it.
struct ImageModel {
  const ModelConfig& config;
  const VisionWeights& vision;
  const DecoderWeights& decoder;
  const Kernels& kernels;
  ThreadPool& pool;
};

class Encoding {
 public:
  enum class Output : uint8_t { prefixes, features };

  // Keeps `values`, which `shape` describes (its data is not read).
  Encoding(const ImageModel& model, Buffer values, PixelBatch shape, Output output);

  bool done() const { return stage_ == Stage::done; }
  // Runs the next slice.
  void advance();

  // When done: one per image, or (images, frames * N, Dv).
  std::vector<std::shared_ptr<Prefix>> take_prefixes() { return decoder_->take(); }
  const Buffer& features() const { return features_; }
  Output output() const { return output_; }
  int64_t images() const { return shape_.images; }
  int64_t tokens() const { return shape_.num_frames() * frame_tokens(model_.config.vision, shape_); }

 private:
  enum class Stage : uint8_t { embed, vision, project, decoder, done };

  const ImageModel model_;
  const Output output_;
  Buffer values_;
  PixelBatch shape_;
  Compute compute_;
  Stage stage_ = Stage::embed;
  std::optional<VisionPass> vision_;
  Buffer features_;
  std::optional<PrefixPass> decoder_;
};

}  // namespace gitfast::cpu
