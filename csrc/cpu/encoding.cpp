// Encoding a batch of images in slices of one layer.
#include "encoding.h"

#include <utility>

namespace gitfast::cpu {
Encoding::Encoding(const ImageModel& model, Buffer values, PixelBatch shape, Output output)
    : model_(model), output_(output), values_(std::move(values)), shape_(shape), compute_(model.kernels, model.pool) {
  shape_.data = values_.floats();
}

void Encoding::advance() {
  switch (stage_) {
    case Stage::embed:
      vision_.emplace(compute_, model_.config.vision, model_.vision, shape_);
      values_ = Buffer();
      stage_ = Stage::vision;
      break;
    case Stage::vision:
      vision_->run_layer();
      if (!vision_->layers_left()) stage_ = Stage::project;
      break;
    case Stage::project:
      features_ = vision_->finish();
      vision_.reset();
      stage_ = Stage::done;
      if (output_ == Output::prefixes) {
        decoder_.emplace(compute_, model_.config, model_.decoder, project(compute_, model_.vision, features_, tokens()),
                         shape_.images, tokens() / shape_.images);
        stage_ = Stage::decoder;
      }
      break;
    case Stage::decoder:
      decoder_->run_layer();
      if (!decoder_->layers_left()) stage_ = Stage::done;
      break;
    case Stage::done:
      break;
  }
}

}  // namespace gitfast::cpu
