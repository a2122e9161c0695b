// The CPU engine: a whole GIT model, one call per encode and per batch of captions. No torch, no Python.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "decoder.h"
#include "isa.h"
#include "model.h"
#include "prefix.h"
#include "rows.h"
#include "search/search.h"
#include "threads.h"
#include "two_stage_head.h"
#include "vision.h"
#include "weights.h"

namespace gitfast::cpu {

using PrefixPtr = std::shared_ptr<const Prefix>;
using TokenLists = std::vector<std::vector<int32_t>>;

// Calls are thread-safe: each has its own workspace, and the regions of the thread pool take turns. A row's result
// does not depend on the other rows of its call. Bad input throws Error before any work is done.
class Engine {
 public:
  // Called now and then during long work, on the calling thread; what it throws ends the call.
  using Poll = std::function<void()>;
  // A row's new token, after every step; returning false ends the generation of all rows as they stand.
  using OnToken = std::function<bool(int32_t row, int32_t token)>;

  // Work done so far.
  struct Stats {
    std::atomic<int64_t> encoded_images{0};  // images and clips
    std::atomic<int64_t> prefill_tokens{0};
    std::atomic<int64_t> decode_steps{0};
  };

  // Some whole rows that ran together.
  struct Chunk {
    const Row* rows;
    const std::vector<TextToken>& tokens;  // of all its rows, one after another
    const float* hidden;                   // (tokens, D)
  };

  // Reads every weight once from `source` and stores the matrices in `format`; the vision encoder of int8 has bf16, for
  // it is bound by arithmetic. `num_threads` 0 chooses. `two_stage_head`: greedy search reads an int8 copy of the head
  // first; its tokens stay exactly the same, log-probabilities become approximate.
  Engine(const ModelConfig& config, const WeightSource& source, WeightFormat format, int num_threads, Isa isa,
         bool two_stage_head);

  // One prefix per image or clip.
  std::vector<PrefixPtr> encode(const PixelBatch& pixels, const Poll& poll) const;

  // Vision features (images, frames * N, Dv), which the projection reads.
  Buffer features(const PixelBatch& pixels) const;

  // Row r continues prompts[r] on prefixes[r] (null: text only). Per row, the sequences found, best first.
  std::vector<std::vector<search::Result>> generate(const std::vector<PrefixPtr>& prefixes, const TokenLists& prompts,
                                                    const search::SearchOptions& options, const OnToken& on_token,
                                                    const Poll& poll) const;

  // Log-probability of every token of sequences[r] but the first, given those before it.
  std::vector<std::vector<float>> score(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences,
                                        const Poll& poll) const;

  // Logits at every token, (tokens of all sequences, V), sequence after sequence.
  Buffer logits(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences, const Poll& poll) const;

  // Attention of every token of `ids` to the tokens of the prefix, (tokens, P): softmax weights over prefix and text,
  // averaged over heads and layers, those on text left out. In attend.cpp.
  Buffer attend(const PrefixPtr& prefix, const std::vector<int32_t>& ids) const;

  const ModelConfig& config() const { return config_; }
  Isa isa() const { return kernels_.isa; }
  WeightFormat format() const { return format_; }
  int num_threads() const { return pool_.num_threads(); }
  size_t bytes() const { return vision_.bytes() + decoder_.bytes() + (quick_head_ ? quick_head_->bytes() : 0); }
  const Stats& stats() const { return stats_; }

 private:
  void check_pixels(const PixelBatch& pixels) const;
  // `name` is the argument that holds `ids`; each row must leave room for `new_tokens` more.
  void check_text(const std::vector<PrefixPtr>& prefixes, const TokenLists& ids, const char* name,
                  int64_t new_tokens) const;
  // Runs the rows' whole texts; `last` takes the hidden states (rows, D) of their last tokens.
  void prefill(Compute& compute, const std::vector<Row>& rows, TextState& state, SlotLists& slots,
               std::vector<TextToken>& tokens, float* last, const Poll& poll) const;
  // Runs whole sequences, a bounded number of tokens at a time.
  void run_sequences(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences, const Poll& poll,
                     const std::function<void(Compute&, const Chunk&)>& use) const;

  const ModelConfig config_;
  const uint64_t id_;
  const WeightFormat format_;
  mutable ThreadPool pool_;
  const Kernels& kernels_;
  const VisionWeights vision_;
  const DecoderWeights decoder_;
  std::optional<TwoStageHead> quick_head_;
  mutable Stats stats_;
};

}  // namespace gitfast::cpu
