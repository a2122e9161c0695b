// The decoder: image tokens to prefixes, and text tokens to hidden states. Image tokens never see text, so the two
// run apart.
#pragma once

#include <memory>
#include <vector>

#include "compute.h"
#include "model.h"
#include "prefix.h"

namespace gitfast::cpu {

// Runs the decoder over image tokens (images, P, D), which it overwrites, and keeps every layer's keys and values.
// Of the last layer nothing else is ever read: its queries, attention and MLP are skipped.
std::vector<std::shared_ptr<Prefix>> make_prefixes(Compute& compute, const ModelConfig& config,
                                                   const DecoderWeights& weights, Buffer& tokens, int64_t images,
                                                   int64_t num_tokens);

// Everything of a layer after attention: `context` (rows, D) is its output, `wide` (rows, intermediate) is workspace,
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

// Text keys and values, and the workspace of one step; owned by one call, reused by all its steps.
// The keys and values of a token are written once, into a slot, and never move: a row is a list of slots.
class TextState {
 public:
  // At most `max_slots` tokens in all, and `max_tokens` in one step.
  TextState(const ModelConfig& config, int64_t max_slots, int64_t max_tokens, int64_t max_prefix, int num_threads);

  // Runs `tokens` through all layers at once -> hidden states (tokens, D), valid until the next call. Neighbours
  // that share a prefix share each pass over its keys and values.
  const float* forward(Compute& compute, const DecoderWeights& weights, const std::vector<TextToken>& tokens);

 private:
  float* keys(int64_t layer) { return keys_.floats() + layer * max_slots_ * config_.hidden_size; }
  float* values(int64_t layer) { return values_.floats() + layer * max_slots_ * config_.hidden_size; }
  void plan(const std::vector<TextToken>& tokens);
  void embed(const Compute& compute, const DecoderWeights& weights, const std::vector<TextToken>& tokens);
  void append(const Compute& compute, int64_t layer, int64_t num_tokens);
  void attend(const Compute& compute, int64_t layer, const std::vector<TextToken>& tokens);

  const ModelConfig config_;
  const int64_t max_slots_;
  const int64_t max_tokens_;
  Buffer keys_, values_;                  // (layers, slots, D)
  Buffer hidden_, qkv_, context_, wide_;  // (tokens, D | 3 D | D | intermediate)
  const int64_t scratch_floats_;          // per thread
  Buffer scratch_;
  std::vector<int64_t> tiles_;         // first tokens of runs that are attended together, and the end
  std::vector<const int32_t*> slots_;  // per token
  std::vector<int32_t> lengths_;       // per token
};

}  // namespace gitfast::cpu
