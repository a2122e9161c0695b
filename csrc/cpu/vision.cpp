// The CLIP vision transformer, temporal embeddings and the projection.
#include "vision.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "positions.h"
#include "self_attention.h"

namespace gitfast::cpu {
namespace {

struct Grid {
  int64_t rows, columns;
  int64_t patches() const { return rows * columns; }
};

// (frames * patches, 3 * patch * patch): every patch as a row, in the order of the convolution's weights.
Buffer gather_patches(const Compute& compute, const PixelBatch& in, Grid grid, int64_t patch) {
  const int64_t k = 3 * patch * patch;
  Buffer out = float_buffer(in.num_frames() * grid.patches() * k);
  compute.parallel(in.num_frames() * grid.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t line = begin; line < end; ++line) {
      const float* frame = in.data + line / grid.rows * 3 * in.height * in.width;
      const int64_t top = line % grid.rows * patch;
      for (int64_t x = 0; x < grid.columns; ++x) {
        float* to = out.floats() + (line * grid.columns + x) * k;
        for (int64_t c = 0; c < 3; ++c)
          for (int64_t y = 0; y < patch; ++y, to += patch)
            std::memcpy(to, frame + (c * in.height + top + y) * in.width + x * patch,
                        static_cast<size_t>(patch) * sizeof(float));
      }
    }
  });
  return out;
}

// (frames, 1 + patches, Dv): class token and patches, with their positions added.
Buffer embed(Compute& compute, const VisionConfig& config, const VisionWeights& w, const PixelBatch& in) {
  const Grid grid{in.height / config.patch_size, in.width / config.patch_size};
  const int64_t d = config.hidden_size, patches = grid.patches(), k = w.patch.view.k;
  const int64_t side = config.grid_size();
  const bool trained = grid.rows == side && grid.columns == side;
  const Buffer resized =
      trained ? Buffer() : interpolate_positions(w.positions.floats(), side, d, grid.rows, grid.columns);
  const float* positions = trained ? w.positions.floats() : resized.floats();  // (1 + patches, Dv)
  const Buffer rows = gather_patches(compute, in, grid, config.patch_size);
  Buffer x = float_buffer(in.num_frames() * (1 + patches) * d);
  for (int64_t f = 0; f < in.num_frames(); ++f) {
    float* frame = x.floats() + f * (1 + patches) * d;
    for (int64_t i = 0; i < d; ++i) frame[i] = w.class_embedding.floats()[i] + positions[i];
    compute.linear({rows.floats() + f * patches * k, k, nullptr, patches, &w.patch.view, Activation::none,
                    positions + d, frame + d, d});
  }
  return x;
}

void add_temporal(const PixelBatch& in, int64_t n, int64_t d, const float* temporal, float* features) {
  for (int64_t f = 0; f < in.num_frames(); ++f) {
    const float* time = temporal + f % in.frames * d;
    for (int64_t t = 0; t < n; ++t, features += d)
      for (int64_t i = 0; i < d; ++i) features[i] += time[i];
  }
}

}  // namespace

VisionPass::VisionPass(Compute& compute, const VisionConfig& config, const VisionWeights& weights, const PixelBatch& in)
    : compute_(compute),
      config_(config),
      weights_(weights),
      shape_(in),
      frame_tokens_(frame_tokens(config, in)),
      rows_(in.num_frames() * frame_tokens_),
      x_(embed(compute, config, weights, in)),
      normed_(float_buffer(rows_ * config.hidden_size)),
      wide_(float_buffer(rows_ * std::max(3 * config.hidden_size, Compute::wide_stride(config.intermediate_size)))) {
  compute.norm(x_.floats(), rows_, weights.pre_norm, x_.floats());
  frames_.reserve(static_cast<size_t>(in.num_frames()));
  for (int64_t f = 0; f < in.num_frames(); ++f)
    groups_.push_back(&frames_.emplace_back(config.num_heads, frame_tokens_, config.head_dim(), weights.keys_values));
}

void VisionPass::run_layer() {
  const VisionLayer& l = weights_.layers[next_++];
  const int64_t d = config_.hidden_size;
  float *x = x_.floats(), *normed = normed_.floats(), *wide = wide_.floats();
  compute_.linear(compute_.norm(x, rows_, l.attention_norm, normed, l.qkv.view), rows_, l.qkv.view, wide);
  store_keys_values(compute_, wide + d, wide + 2 * d, 3 * d, groups_);
  self_attention(compute_, wide, 3 * d, groups_, normed);
  compute_.linear(normed, rows_, l.out.view, x, Activation::none, x);
  const Input in = compute_.norm(x, rows_, l.mlp_norm, normed, l.fc1.view);
  compute_.mlp(in, rows_, l.fc1.view, Activation::quick_gelu, l.fc2.view, wide, x);
}

Buffer VisionPass::finish() {
  compute_.norm(x_.floats(), rows_, weights_.post_norm, x_.floats());
  if (shape_.temporal)
    add_temporal(shape_, frame_tokens_, config_.hidden_size, weights_.temporal.floats(), x_.floats());
  return std::move(x_);
}

Buffer project(Compute& compute, const VisionWeights& w, const Buffer& features, int64_t rows) {
  Buffer tokens = float_buffer(rows * w.projection.view.n);
  compute.linear(features.floats(), rows, w.projection.view, tokens.floats());
  compute.norm(tokens.floats(), rows, w.projection_norm, tokens.floats());
  return tokens;
}

}  // namespace gitfast::cpu
