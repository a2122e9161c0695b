#include "vision.h"

#include <algorithm>
#include <cstring>

#include "positions.h"
#include "prefix.h"
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

Buffer vision_features(Compute& compute, const VisionConfig& config, const VisionWeights& w, const PixelBatch& in) {
  const int64_t d = config.hidden_size, n = frame_tokens(config, in), rows = in.num_frames() * n;
  Buffer x = embed(compute, config, w, in);
  compute.norm(x.floats(), rows, w.pre_norm, x.floats());

  Buffer normed = float_buffer(rows * d), wide = float_buffer(rows * std::max(3 * d, config.intermediate_size));
  std::vector<KeyValues> frames;
  std::vector<KeyValues*> groups;
  frames.reserve(static_cast<size_t>(in.num_frames()));
  for (int64_t f = 0; f < in.num_frames(); ++f)
    groups.push_back(&frames.emplace_back(config.num_heads, n, config.head_dim(), w.keys_values));

  for (const VisionLayer& l : w.layers) {
    compute.norm(x.floats(), rows, l.attention_norm, normed.floats());
    compute.linear(normed.floats(), rows, l.qkv.view, wide.floats());
    store_keys_values(compute, wide.floats() + d, wide.floats() + 2 * d, 3 * d, groups);
    self_attention(compute, wide.floats(), 3 * d, groups, normed.floats());
    compute.linear(normed.floats(), rows, l.out.view, x.floats(), Activation::none, x.floats());
    compute.norm(x.floats(), rows, l.mlp_norm, normed.floats());
    compute.linear(normed.floats(), rows, l.fc1.view, wide.floats(), Activation::quick_gelu);
    compute.linear(wide.floats(), rows, l.fc2.view, x.floats(), Activation::none, x.floats());
  }
  compute.norm(x.floats(), rows, w.post_norm, x.floats());
  if (in.temporal) add_temporal(in, n, d, w.temporal.floats(), x.floats());
  return x;
}

Buffer project(Compute& compute, const VisionWeights& w, const Buffer& features, int64_t rows) {
  Buffer tokens = float_buffer(rows * w.projection.view.n);
  compute.linear(features.floats(), rows, w.projection.view, tokens.floats());
  compute.norm(tokens.floats(), rows, w.projection_norm, tokens.floats());
  return tokens;
}

}  // namespace gitfast::cpu
