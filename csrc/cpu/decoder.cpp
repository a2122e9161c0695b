// The decoder over image tokens (prefixes) and over text rows (hidden states).
#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "self_attention.h"

namespace gitfast::cpu {

void finish_layer(Compute& compute, const DecoderLayer& l, int64_t rows, const float* context, float* wide, float* x) {
  compute.linear(context, rows, l.out.view, x, Activation::none, x);
  const Input in = compute.norm(x, rows, l.attention_norm, x, l.fc1.view);  // post-norm, as BERT has it
  compute.mlp(in, rows, l.fc1.view, Activation::gelu_erf, l.fc2.view, wide, x);
  compute.norm(x, rows, l.output_norm, x);
}

namespace {

// The fused product without its first `columns` outputs, which must be whole panels.
PackedLinear drop_columns(const PackedLinear& w, int64_t columns) {
  PackedLinear rest = w;
  rest.n -= columns;
  rest.panels = static_cast<const uint32_t*>(w.panels) + columns / kPanel * w.panel_words();
  if (w.scales) rest.scales += columns;
  rest.bias += columns;
  return rest;
}

}  // namespace

PrefixPass::PrefixPass(Compute& compute, const ModelConfig& config, const DecoderWeights& weights, Buffer tokens,
                       int64_t images, int64_t num_tokens)
    : compute_(compute),
      config_(config),
      weights_(weights),
      rows_(images * num_tokens),
      x_(std::move(tokens)),
      qkv_(float_buffer(rows_ * 3 * config.hidden_size)),
      context_(float_buffer(rows_ * config.hidden_size)),
      wide_(float_buffer(rows_ * Compute::wide_stride(config.intermediate_size))),
      groups_(static_cast<size_t>(images)) {
  for (int64_t b = 0; b < images; ++b) {
    prefixes_.push_back(std::make_shared<Prefix>());
    prefixes_.back()->tokens = num_tokens;
    for (int64_t layer = 0; layer < config.num_layers; ++layer)
      prefixes_.back()->layers.emplace_back(config.num_heads, num_tokens, config.head_dim(), weights.keys_values);
  }
}

void PrefixPass::run_layer() {
  const auto layer = static_cast<size_t>(next_++);
  const DecoderLayer& l = weights_.layers[layer];
  const int64_t d = config_.hidden_size;
  for (size_t b = 0; b < prefixes_.size(); ++b) groups_[b] = &prefixes_[b]->layers[layer];
  const int64_t unused = !layers_left() && d % kPanel == 0 ? d : 0;  // the queries of the last layer
  const PackedLinear product = drop_columns(l.qkv.view, unused);
  compute_.linear(x_.floats(), rows_, product, qkv_.floats());
  store_keys_values(compute_, qkv_.floats() + d - unused, qkv_.floats() + 2 * d - unused, product.n, groups_);
  if (!layers_left()) return;
  self_attention(compute_, qkv_.floats(), product.n, groups_, context_.floats());
  finish_layer(compute_, l, rows_, context_.floats(), wide_.floats(), x_.floats());
}

void TextState::reserve(int64_t slots, int64_t used, int64_t tokens, int64_t prefix) {
  const ModelConfig& c = config_;
  const int64_t d = c.hidden_size;
  if (slots > max_slots_) {
    Buffer keys = float_buffer(c.num_layers * slots * d), values = float_buffer(c.num_layers * slots * d);
    for (int64_t layer = 0; used > 0 && layer < c.num_layers; ++layer) {
      std::copy_n(keys_.floats() + layer * max_slots_ * d, used * d, keys.floats() + layer * slots * d);
      std::copy_n(values_.floats() + layer * max_slots_ * d, used * d, values.floats() + layer * slots * d);
    }
    keys_ = std::move(keys);
    values_ = std::move(values);
    max_slots_ = slots;
  }
  if (tokens > max_tokens_) {
    Buffer hidden = float_buffer(tokens * d), qkv = float_buffer(tokens * 3 * d), context = float_buffer(tokens * d);
    wide_ = float_buffer(tokens * Compute::wide_stride(c.intermediate_size));
    hidden_ = std::move(hidden);
    qkv_ = std::move(qkv);
    context_ = std::move(context);
    tiles_.reserve(static_cast<size_t>(tokens) + 1);
    slots_.reserve(static_cast<size_t>(tokens));
    lengths_.reserve(static_cast<size_t>(tokens));
    max_tokens_ = tokens;
  }
  if (prefix > max_prefix_) {
    const int64_t floats = attention_scratch_floats(c.head_dim(), prefix, c.max_positions);
    scratch_ = float_buffer(floats * num_threads_);
    scratch_floats_ = floats;
    max_prefix_ = prefix;
  }
}

size_t TextState::bytes() const {
  size_t total = 0;
  for (const Buffer* b : {&keys_, &values_, &hidden_, &qkv_, &context_, &wide_, &scratch_}) total += b->bytes();
  return total;
}

const float* TextState::forward(Compute& compute, const DecoderWeights& w, const std::vector<TextToken>& tokens) {
  const auto n = static_cast<int64_t>(tokens.size());
  if (n > max_tokens_) throw Error("text: more tokens in one step than reserved");
  plan(tokens);
  embed(compute, w, tokens);
  float* x = hidden_.floats();
  for (int64_t layer = 0; layer < config_.get().num_layers; ++layer) {
    const DecoderLayer& l = w.layers[static_cast<size_t>(layer)];
    compute.linear(x, n, l.qkv.view, qkv_.floats());
    append(compute, layer, n);
    attend(compute, layer, tokens);
    finish_layer(compute, l, n, context_.floats(), wide_.floats(), x);
  }
  return x;
}

void TextState::plan(const std::vector<TextToken>& tokens) {
  constexpr int64_t kTileTokens = 64;  // one huge run would leave threads idle
  tiles_.clear();
  slots_.clear();
  lengths_.clear();
  const auto n = static_cast<int64_t>(tokens.size());
  for (int64_t i = 0; i < n; ++i) {
    const TextToken& token = tokens[static_cast<size_t>(i)];
    if (i == 0 || token.prefix != tokens[static_cast<size_t>(i) - 1].prefix || i - tiles_.back() == kTileTokens)
      tiles_.push_back(i);
    slots_.push_back(token.slots);
    lengths_.push_back(token.position + 1);
  }
  tiles_.push_back(n);
}

// hidden = norm(word + position)
void TextState::embed(const Compute& compute, const DecoderWeights& w, const std::vector<TextToken>& tokens) {
  const int64_t d = config_.get().hidden_size;
  float* x = hidden_.floats();
  for (const TextToken& token : tokens) {
    const float* position = w.positions.floats() + token.position * d;
    w.words.read(token.id, x);
    for (int64_t i = 0; i < d; ++i) x[i] += position[i];
    x += d;
  }
  compute.norm(hidden_.floats(), static_cast<int64_t>(tokens.size()), w.embedding_norm, hidden_.floats());
}

// Writes the new tokens' keys and values into their slots.
void TextState::append(const Compute& compute, int64_t layer, int64_t num_tokens) {
  constexpr int64_t kTokensPerPart = 16;  // fewer cost less than waking a thread
  const int64_t d = config_.get().hidden_size;
  const auto bytes = static_cast<size_t>(d) * sizeof(float);
  compute.parallel(num_tokens, kTokensPerPart, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = qkv_.floats() + i * 3 * d;
      const int64_t slot = slots_[static_cast<size_t>(i)][lengths_[static_cast<size_t>(i)] - 1];
      std::memcpy(keys(layer) + slot * d, row + d, bytes);
      std::memcpy(values(layer) + slot * d, row + 2 * d, bytes);
    }
  });
}

void TextState::attend(const Compute& compute, int64_t layer, const std::vector<TextToken>& tokens) {
  const ModelConfig& c = config_;
  const int64_t d = c.hidden_size, heads = c.num_heads, hd = c.head_dim();
  const auto num_tiles = static_cast<int64_t>(tiles_.size()) - 1;
  const auto head_of = [&](int64_t i) {
    const Prefix* prefix = tokens[static_cast<size_t>(tiles_[static_cast<size_t>(i / heads)])].prefix;
    return prefix ? prefix->layers[static_cast<size_t>(layer)].head(i % heads) : PackedHead();
  };
  compute.parallel(num_tiles * heads, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = tiles_[static_cast<size_t>(i / heads)], head = i % heads;
      AttentionArgs args;
      args.q = qkv_.floats() + first * 3 * d + head * hd;
      args.q_stride = 3 * d;
      args.rows = tiles_[static_cast<size_t>(i / heads) + 1] - first;
      args.head_dim = hd;
      args.scale = 1.f / std::sqrt(static_cast<float>(hd));
      args.prefix = head_of(i);
      if (i + 1 < end) args.next_keys = head_of(i + 1).keys;
      args.k_text = keys(layer) + head * hd;
      args.v_text = values(layer) + head * hd;
      args.text_stride = d;
      args.slots = slots_.data() + first;
      args.text_len = lengths_.data() + first;
      args.out = context_.floats() + first * d + head * hd;
      args.out_stride = d;
      args.scratch = scratch_.floats() + thread * scratch_floats_;
      compute.kernels.attention(args);
    }
  });
}

}  // namespace gitfast::cpu
