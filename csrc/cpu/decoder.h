// The decoder: image tokens to prefixes, and text tokens to hidden states. Image tokens never see text, so the two
// run apart.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "compute.h"
#include "model.h"
#include "prefix.h"

namespace gitfast::cpu {

// The decoder over image tokens, a layer at a time: keeps every layer's keys and values. Nothing else of the last
// layer is ever read: its queries, attention and MLP are skipped.
class PrefixPass {
 public:
  // `tokens` are (images, P, D).
  PrefixPass(Compute& compute, const ModelConfig& config, const DecoderWeights& weights, Buffer tokens, int64_t images,
             int64_t num_tokens);

  bool layers_left() const { return next_ < config_.num_layers; }
  void run_layer();
  // One per image, when no layers are left.
  std::vector<std::shared_ptr<Prefix>> take() { return std::move(prefixes_); }

 private:
  Compute& compute_;
  const ModelConfig& config_;
  const DecoderWeights& weights_;
  const int64_t rows_;
  Buffer x_, qkv_, context_, wide_;
  std::vector<std::shared_ptr<Prefix>> prefixes_;
  std::vector<KeyValues*> groups_;
  int64_t next_ = 0;
};

// Everything of a layer after attention: `context` (rows, D) is its output, `wide` is workspace of Compute::mlp,
// and x (rows, D) goes from the layer's input to its output.
void finish_layer(Compute& compute, const DecoderLayer& layer, int64_t rows, const float* context, float* wide,
                  float* x);

// One text token to run: it sees its row's prefix and the text up to itself.
struct TextToken {
  int32_t id = 0;
  int32_t position = 0;            // 0 for the first token of the text; image tokens take no positions
  const Prefix* prefix = nullptr;  // null: text only
  const int32_t* slots = nullptr;  // slots of the tokens 0 .. position, its own last
};

// Text keys and values, and the workspace of one step. The keys and values of a token are written once, into a slot:
// a row is a list of slots.
class TextState {
 public:
  TextState(const ModelConfig& config, int num_threads) : config_(config), num_threads_(num_threads) {}

  // Room for `slots` tokens in all, for `tokens` in one step, and for prefixes of `prefix` tokens. Keeps what is in the
  // first `used` slots; throws std::bad_alloc and changes nothing where memory does not suffice.
  void reserve(int64_t slots, int64_t used, int64_t tokens, int64_t prefix);
  // Lets go of everything.
  void clear() { *this = TextState(config_, num_threads_); }
  size_t bytes() const;

  // Runs `tokens` through all layers at once -> hidden states (tokens, D), valid until the next call. Neighbours
  // that share a prefix share each pass over its keys and values.
  const float* forward(Compute& compute, const DecoderWeights& weights, const std::vector<TextToken>& tokens);

 private:
  float* keys(int64_t layer) { return keys_.floats() + layer * max_slots_ * config_.get().hidden_size; }
  float* values(int64_t layer) { return values_.floats() + layer * max_slots_ * config_.get().hidden_size; }
  void plan(const std::vector<TextToken>& tokens);
  void embed(const Compute& compute, const DecoderWeights& weights, const std::vector<TextToken>& tokens);
  void append(const Compute& compute, int64_t layer, int64_t num_tokens);
  void attend(const Compute& compute, int64_t layer, const std::vector<TextToken>& tokens);

  std::reference_wrapper<const ModelConfig> config_;
  int num_threads_;
  int64_t max_slots_ = 0, max_tokens_ = 0, max_prefix_ = -1;
  Buffer keys_, values_;                  // (layers, slots, D)
  Buffer hidden_, qkv_, context_, wide_;  // (tokens, D | 3 D | D | Compute::wide_stride)
  int64_t scratch_floats_ = 0;            // per thread
  Buffer scratch_;
  std::vector<int64_t> tiles_;         // first tokens of runs that are attended together, and the end
  std::vector<const int32_t*> slots_;  // per token
  std::vector<int32_t> lengths_;       // per token
};

}  // namespace gitfast::cpu
