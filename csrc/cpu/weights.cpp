// Weights packed by name into the layouts that kernels read.
#include "weights.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace gitfast::cpu {
namespace {

using Shape = std::vector<int64_t>;

std::string text(const int64_t* shape, size_t n) {
  std::string s = "(";
  for (size_t i = 0; i < n; ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (n == 1 ? ",)" : ")");
}

// Reads named tensors, checks them against the configuration, and packs them.
class Loader {
 public:
  Loader(const WeightSource& source, WeightFormat format, ThreadPool& pool)
      : source_(source), format_(format), pool_(pool) {}

  Buffer vector(const std::string& name, const Shape& shape) {
    const TensorView t = tensor(name, shape);
    Buffer out(static_cast<size_t>(t.numel()) * sizeof(float));
    to_floats(t.data, t.dtype == DType::f16, t.numel(), out.floats());
    return out;
  }

  Embedding embedding(const std::string& name, int64_t rows, int64_t d) {
    if (format_ == WeightFormat::f32) return {vector(name, {rows, d}), d, false};
    const TensorView t = tensor(name, {rows, d});
    Buffer out(static_cast<size_t>(rows * d) * sizeof(uint16_t));
    const int64_t row_bytes = d * static_cast<int64_t>(dtype_size(t.dtype));
    pool_.parallel_for(rows, 64, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(static_cast<size_t>(d));
      for (int64_t r = begin; r < end; ++r) {
        to_floats(static_cast<const char*>(t.data) + r * row_bytes, t.dtype == DType::f16, d, row.data());
        to_bf16(row.data(), d, static_cast<uint16_t*>(out.data()) + r * d);
      }
    });
    return {std::move(out), d, true};
  }

  Norm norm(const std::string& name, int64_t d, float eps) {
    return {vector(name + ".weight", {d}), vector(name + ".bias", {d}), eps};
  }

  Linear linear(const std::string& name, int64_t n, int64_t k) { return linear("", {name}, n, k); }

  // The layers `prefix + name` of n outputs each, side by side.
  Linear linear(const std::string& prefix, const std::vector<std::string>& names, int64_t n, int64_t k) {
    const auto count = static_cast<int64_t>(names.size());
    Linear out = reserve(count * n, k);
    out.bias = Buffer(static_cast<size_t>(count * n) * sizeof(float));
    out.view.bias = out.bias.floats();
    int64_t offset = 0;
    for (const std::string& name : names) {
      pack(prefix + name + ".weight", {n, k}, offset, out);
      const TensorView bias = tensor(prefix + name + ".bias", {n});
      to_floats(bias.data, bias.dtype == DType::f16, n, out.bias.floats() + offset);
      offset += n;
    }
    return out;
  }

  // A convolution whose stride is its size: a linear layer over patches.
  Linear patches(const std::string& name, int64_t n, int64_t patch) {
    const int64_t k = 3 * patch * patch;
    Linear out = reserve(n, k);
    pack(name, {n, 3, patch, patch}, 0, out);
    return out;
  }

 private:
  TensorView tensor(const std::string& name, const Shape& shape) {
    const TensorView t = source_(name);
    const auto ndim = static_cast<size_t>(t.ndim);
    if (Shape(t.shape, t.shape + ndim) != shape)
      throw Error(name + ": expected shape " + text(shape.data(), shape.size()) + ", got " + text(t.shape, ndim));
    if (t.dtype != DType::f32 && t.dtype != DType::f16)
      throw Error(name + ": expected float32 or float16, got " + dtype_name(t.dtype));
    Check(t, name.c_str()).device(Device::cpu).contiguous();
    return t;
  }

  Linear reserve(int64_t n, int64_t k) const {
    Linear out;
    out.view = {n, k, format_};
    out.panels = Buffer(static_cast<size_t>(out.view.num_panels() * out.view.panel_words()) * sizeof(uint32_t));
    out.view.panels = out.panels.data();
    if (n % kPanel != 0 || k % terms_per_word(format_) != 0) std::memset(out.panels.data(), 0, out.panels.bytes());
    if (is_int8(format_)) {
      out.scales = Buffer(static_cast<size_t>(n) * sizeof(float));
      out.view.scales = out.scales.floats();
    }
    return out;
  }

  void pack(const std::string& name, const Shape& shape, int64_t offset, Linear& out) {
    const TensorView w = tensor(name, shape);
    const auto* bytes = static_cast<const char*>(w.data);
    const int64_t k = out.view.k, row_bytes = k * static_cast<int64_t>(dtype_size(w.dtype));
    try {
      pool_.parallel_for(shape[0], kPanel, [&](int64_t begin, int64_t end, int) {
        pack_linear_rows(bytes + begin * row_bytes, w.dtype == DType::f16, end - begin, k, offset + begin, format_,
                         out.panels.data(), out.scales.floats());
      });
    } catch (const Error& error) {
      throw Error(name + ": " + error.what());
    }
  }

  const WeightSource& source_;
  const WeightFormat format_;
  ThreadPool& pool_;
};

// Whole numbers would need a scale for every token.
WeightFormat keys_values_format(WeightFormat weights) {
  return weights == WeightFormat::f32 ? WeightFormat::f32 : WeightFormat::bf16;
}

size_t bytes_of(const Norm& n) { return n.gamma.bytes() + n.beta.bytes(); }

}  // namespace

void Embedding::read(int64_t row, float* out) const {
  if (!is_bf16_) {
    std::copy_n(values_.floats() + row * d_, d_, out);
    return;
  }
  const auto* from = static_cast<const uint16_t*>(values_.data()) + row * d_;
  for (int64_t i = 0; i < d_; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

VisionWeights load_vision(const ModelConfig& config, const WeightSource& source, WeightFormat format,
                          ThreadPool& pool) {
  const VisionConfig& c = config.vision;
  const int64_t d = c.hidden_size;
  const std::string root = "git.image_encoder.vision_model.";
  const std::string projection = "git.visual_projection.visual_projection.";
  Loader load(source, format, pool);
  VisionWeights w;
  w.keys_values = keys_values_format(format);
  w.patch = load.patches(root + "embeddings.patch_embedding.weight", d, c.patch_size);
  w.class_embedding = load.vector(root + "embeddings.class_embedding", {d});
  w.positions = load.vector(root + "embeddings.position_embedding.weight", {c.num_tokens(), d});
  w.pre_norm = load.norm(root + "pre_layrnorm", d, c.layer_norm_eps);  // sic
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = root + "encoder.layers." + std::to_string(i) + ".";
    VisionLayer l;
    l.attention_norm = load.norm(layer + "layer_norm1", d, c.layer_norm_eps);
    l.qkv = load.linear(layer + "self_attn.", {"q_proj", "k_proj", "v_proj"}, d, d);
    l.out = load.linear(layer + "self_attn.out_proj", d, d);
    l.mlp_norm = load.norm(layer + "layer_norm2", d, c.layer_norm_eps);
    l.fc1 = load.linear(layer + "mlp.fc1", c.intermediate_size, d);
    l.fc2 = load.linear(layer + "mlp.fc2", d, c.intermediate_size);
    w.layers.push_back(std::move(l));
  }
  w.post_norm = load.norm(root + "post_layernorm", d, c.layer_norm_eps);
  w.temporal = Buffer(static_cast<size_t>(config.num_frames * d) * sizeof(float));
  for (int64_t t = 0; t < config.num_frames; ++t) {
    const Buffer frame = load.vector("git.img_temporal_embedding." + std::to_string(t), {1, 1, d});
    std::memcpy(w.temporal.floats() + t * d, frame.floats(), frame.bytes());
  }
  w.projection = load.linear(projection + "0", config.hidden_size, d);
  w.projection_norm = load.norm(projection + "1", config.hidden_size, c.layer_norm_eps);
  return w;
}

DecoderWeights load_decoder(const ModelConfig& config, const WeightSource& source, WeightFormat format,
                            ThreadPool& pool) {
  const int64_t d = config.hidden_size;
  const float eps = config.layer_norm_eps;
  Loader load(source, format, pool);
  DecoderWeights w;
  w.keys_values = keys_values_format(format);
  w.words = load.embedding("git.embeddings.word_embeddings.weight", config.vocab_size, d);
  w.positions = load.vector("git.embeddings.position_embeddings.weight", {config.max_positions, d});
  w.embedding_norm = load.norm("git.embeddings.LayerNorm", d, eps);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "git.encoder.layer." + std::to_string(i) + ".";
    DecoderLayer l;
    l.qkv = load.linear(layer + "attention.self.", {"query", "key", "value"}, d, d);
    l.out = load.linear(layer + "attention.output.dense", d, d);
    l.attention_norm = load.norm(layer + "attention.output.LayerNorm", d, eps);
    l.fc1 = load.linear(layer + "intermediate.dense", config.intermediate_size, d);
    l.fc2 = load.linear(layer + "output.dense", d, config.intermediate_size);
    l.output_norm = load.norm(layer + "output.LayerNorm", d, eps);
    w.layers.push_back(std::move(l));
  }
  w.head = load.linear("output", config.vocab_size, d);
  return w;
}

size_t VisionWeights::bytes() const {
  size_t total = patch.bytes() + class_embedding.bytes() + positions.bytes() + bytes_of(pre_norm) +
                 bytes_of(post_norm) + temporal.bytes() + projection.bytes() + bytes_of(projection_norm);
  for (const VisionLayer& l : layers)
    total += bytes_of(l.attention_norm) + bytes_of(l.mlp_norm) + l.qkv.bytes() + l.out.bytes() + l.fc1.bytes() +
             l.fc2.bytes();
  return total;
}

size_t DecoderWeights::bytes() const {
  size_t total = words.bytes() + positions.bytes() + bytes_of(embedding_norm) + head.bytes();
  for (const DecoderLayer& l : layers)
    total += l.qkv.bytes() + l.out.bytes() + l.fc1.bytes() + l.fc2.bytes() + bytes_of(l.attention_norm) +
             bytes_of(l.output_norm);
  return total;
}

}  // namespace gitfast::cpu
