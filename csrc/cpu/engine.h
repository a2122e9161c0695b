// The CPU engine: a whole GIT model. Calls from any threads share one running batch. No torch, no Python.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "isa.h"
#include "model.h"
#include "running_batch.h"
#include "search/search.h"
#include "threads.h"
#include "two_stage_head.h"
#include "vision.h"
#include "weights.h"

namespace gitfast::cpu {

// Calls are thread-safe. A row's result does not depend on the other rows of its call, nor on other calls. Bad input
// throws Error before any work is done.
class Engine {
 public:
  using Stats = RunningBatch::Stats;  // of the work done so far

  // Reads every weight once from `source` and stores the matrices in `format`; the vision encoder of int8 has bf16, for
  // it is bound by arithmetic. `num_threads` 0 chooses. `two_stage_head`: greedy search reads an int8 copy of the head
  // first; its tokens stay exactly the same, log-probabilities become approximate.
  Engine(const ModelConfig& config, const WeightSource& source, WeightFormat format, int num_threads, Isa isa,
         bool two_stage_head);

  // One prefix per image or clip.
  std::vector<PrefixPtr> encode(const PixelBatch& pixels, const Control& control) const;

  // Vision features (images, frames * N, Dv), which the projection reads.
  Buffer features(const PixelBatch& pixels, const Control& control) const;

  // Row r continues prompts[r] on prefixes[r] (null: text only). Per row, the sequences found, best first.
  std::vector<std::vector<search::Result>> generate(const std::vector<PrefixPtr>& prefixes, const TokenLists& prompts,
                                                    const search::SearchOptions& options, const OnTokens& on_tokens,
                                                    const Control& control) const;

  // Log-probability of every token of sequences[r] but the first, given those before it.
  std::vector<std::vector<float>> score(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences,
                                        const Control& control) const;

  // Logits at every token, (tokens of all sequences, V), sequence after sequence.
  Buffer logits(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences, const Control& control) const;

  // A running batch of the caller's own, apart from that of the calls above. The engine must outlive it.
  std::unique_ptr<Decoding> decoding() const { return std::make_unique<Decoding>(text_model()); }
  // Throws Error where these cannot go into `decoding()`: generate, one row.
  void check_prompt(const PrefixPtr& prefix, const std::vector<int32_t>& prompt,
                    const search::SearchOptions& options) const;

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
  // `name` is the argument that holds `ids`; each row must leave room for `new_tokens` more.
  void check_text(const std::vector<PrefixPtr>& prefixes, const TokenLists& ids, const char* name,
                  int64_t new_tokens) const;
  TextModel text_model() const;
  RunningBatch& batch() const;

  const ModelConfig config_;
  const uint64_t id_;
  const WeightFormat format_;
  mutable ThreadPool pool_;
  const Kernels& kernels_;
  const VisionWeights vision_;
  const DecoderWeights decoder_;
  std::optional<TwoStageHead> quick_head_;
  mutable Stats stats_;
  mutable PerProcess<RunningBatch> batch_;
};

}  // namespace gitfast::cpu
