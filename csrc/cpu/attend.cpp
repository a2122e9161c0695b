// The decoder's attention from text to the image tokens, for people to see. It runs one sequence at a time with
// plain loops in place of the attention kernel, which keeps no weights; all products are those of the engine.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine.h"

namespace gitfast::cpu {
namespace {

// Keys and values of one layer for image and text together: head h's token t is row h * tokens + t.
struct LayerKeysValues {
  int64_t tokens;
  std::vector<float> keys, values;  // (heads, tokens, head_dim)
};

// The prefix of a layer, and room for `text` tokens behind it.
LayerKeysValues unpack(const KeyValues& prefix, int64_t text) {
  const int64_t heads = prefix.heads, image = prefix.tokens, hd = prefix.head_dim, tokens = image + text;
  std::vector<float> keys(static_cast<size_t>(heads * image * hd)), values(keys.size());
  prefix.unpack(keys.data(), values.data());
  LayerKeysValues out{tokens, std::vector<float>(static_cast<size_t>(heads * tokens * hd)), {}};
  out.values.resize(out.keys.size());
  for (int64_t h = 0; h < heads; ++h) {
    std::copy_n(keys.data() + h * image * hd, image * hd, out.keys.data() + h * tokens * hd);
    std::copy_n(values.data() + h * image * hd, image * hd, out.values.data() + h * tokens * hd);
  }
  return out;
}

// weights[0, seen) = softmax(q K^T * scale)
void softmax_weights(const float* q, const float* keys, int64_t seen, int64_t head_dim, float* weights) {
  const float scale = 1.f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t t = 0; t < seen; ++t) weights[t] = scale * std::inner_product(q, q + head_dim, keys + t * head_dim, 0.f);
  const float peak = *std::max_element(weights, weights + seen);
  float sum = 0;
  for (int64_t t = 0; t < seen; ++t) sum += weights[t] = std::exp(weights[t] - peak);
  for (int64_t t = 0; t < seen; ++t) weights[t] /= sum;
}

}  // namespace

Buffer Engine::attend(const PrefixPtr& prefix, const std::vector<int32_t>& ids) const {
  check_text({prefix}, {ids}, "sequences", 0);
  if (!prefix) throw Error("prefix: expected an image's, got None");
  const int64_t d = config_.hidden_size, heads = config_.num_heads, hd = config_.head_dim();
  const auto length = static_cast<int64_t>(ids.size());
  const int64_t image = prefix->tokens, seen = image + length;
  Buffer out = float_buffer(length * image), x = float_buffer(length * d), qkv = float_buffer(length * 3 * d);
  Buffer context = float_buffer(length * d),
         wide = float_buffer(length * Compute::wide_stride(config_.intermediate_size));
  std::fill_n(out.floats(), length * image, 0.f);
  Compute compute(kernels_, next_pool());
  for (int64_t t = 0; t < length; ++t) {
    float* row = x.floats() + t * d;
    decoder_.words.read(ids[static_cast<size_t>(t)], row);
    for (int64_t i = 0; i < d; ++i) row[i] += decoder_.positions.floats()[t * d + i];
  }
  compute.norm(x.floats(), length, decoder_.embedding_norm, x.floats());

  const float share = 1.f / static_cast<float>(heads * config_.num_layers);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const DecoderLayer& l = decoder_.layers[static_cast<size_t>(layer)];
    compute.linear(x.floats(), length, l.qkv.view, qkv.floats());
    LayerKeysValues kv = unpack(prefix->layers[static_cast<size_t>(layer)], length);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < length; ++t) {
        const float* row = qkv.floats() + t * 3 * d + h * hd;
        std::copy_n(row + d, hd, kv.keys.data() + (h * seen + image + t) * hd);
        std::copy_n(row + 2 * d, hd, kv.values.data() + (h * seen + image + t) * hd);
      }
    // Tokens apart, so that heads add up in their order whatever the number of threads.
    compute.parallel(length, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> weights(static_cast<size_t>(seen));
      for (int64_t t = begin; t < end; ++t)
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t visible = image + t + 1;
          const float* values = kv.values.data() + h * seen * hd;
          softmax_weights(qkv.floats() + t * 3 * d + h * hd, kv.keys.data() + h * seen * hd, visible, hd,
                          weights.data());
          float* to = context.floats() + t * d + h * hd;
          std::fill_n(to, hd, 0.f);
          for (int64_t i = 0; i < visible; ++i)
            for (int64_t c = 0; c < hd; ++c) to[c] += weights[static_cast<size_t>(i)] * values[i * hd + c];
          for (int64_t i = 0; i < image; ++i) out.floats()[t * image + i] += share * weights[static_cast<size_t>(i)];
        }
    });
    finish_layer(compute, l, length, context.floats(), wide.floats(), x.floats());
  }
  return out;
}

}  // namespace gitfast::cpu
