// The CPU engine: a whole GIT model. Calls from any threads share its lanes, each a running batch. No torch, no Python.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "isa.h"
#include "lanes.h"
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

  // Reads every weight once from `source` and stores the matrices in `format`. `two_stage_head`: greedy search reads an
  // int8 copy of the head first; its tokens stay exactly the same, log-probabilities become approximate.
  Engine(const ModelConfig& config, const WeightSource& source, WeightFormat format, Crews crews, Isa isa,
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

  // A running batch of the caller's own, apart from those of the calls above; it computes with the threads of one lane,
  // each new one with the next's. The engine must outlive it.
  std::unique_ptr<Decoding> decoding() const { return std::make_unique<Decoding>(text_model(next_pool())); }
  // Throws Error where these cannot go into `decoding()`: generate, one row.
  void check_prompt(const PrefixPtr& prefix, const std::vector<int32_t>& prompt,
                    const search::SearchOptions& options) const;

  // Attention of every token of `ids` to the tokens of the prefix, (tokens, P): softmax weights over prefix and text,
  // averaged over heads and layers, those on text left out. In attend.cpp.
  Buffer attend(const PrefixPtr& prefix, const std::vector<int32_t>& ids) const;

  const ModelConfig& config() const { return config_; }
  Isa isa() const { return kernels_.isa; }
  WeightFormat format() const { return format_; }
  int num_lanes() const { return static_cast<int>(pools_.size()); }
  int num_threads() const { return pools_.front()->num_threads(); }  // of each lane
  size_t bytes() const { return vision_.bytes() + decoder_.bytes() + (quick_head_ ? quick_head_->bytes() : 0); }
  const Stats& stats() const { return stats_; }

 private:
  // `name` is the argument that holds `ids`; each row must leave room for `new_tokens` more.
  void check_text(const std::vector<PrefixPtr>& prefixes, const TokenLists& ids, const char* name,
                  int64_t new_tokens) const;
  TextModel text_model(ThreadPool& pool) const;
  ThreadPool& next_pool() const { return *pools_[next_pool_.fetch_add(1) % pools_.size()]; }
  Lanes& lanes() const;

  const ModelConfig config_;
  const uint64_t id_;
  const WeightFormat format_;
  const std::vector<std::unique_ptr<ThreadPool>> pools_;  // of each lane
  mutable std::atomic<size_t> next_pool_{0};
  const Kernels& kernels_;
  VisionWeights vision_;
  DecoderWeights decoder_;
  std::optional<TwoStageHead> quick_head_;
  mutable Stats stats_;
  mutable PerProcess<Lanes> lanes_;
};

}  // namespace gitfast::cpu
