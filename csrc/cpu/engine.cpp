// The CPU engine: whole calls, divided among its lanes.
#include "engine.h"

#include <string>
#include <utility>

#include "arguments.h"

namespace gitfast::cpu {
namespace {

uint64_t next_engine_id() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1);
}

const ModelConfig& checked(const ModelConfig& c) {
  const int64_t sizes[] = {c.vision.hidden_size, c.vision.intermediate_size,
                           c.vision.num_layers,  c.vision.num_heads,
                           c.vision.image_size,  c.vision.patch_size,
                           c.vocab_size,         c.hidden_size,
                           c.intermediate_size,  c.num_layers,
                           c.num_heads,          c.max_positions};
  for (int64_t size : sizes)
    if (size < 1) throw Error("config: sizes must be positive, got " + std::to_string(size));
  if (c.num_frames < 0) throw Error("config: num_image_with_embedding must not be negative");
  if (c.hidden_size % c.num_heads || c.vision.hidden_size % c.vision.num_heads)
    throw Error("config: hidden_size must be divisible by num_attention_heads");
  if (c.vision.patch_size > c.vision.image_size) throw Error("config: patch_size exceeds image_size");
  return c;
}

std::vector<std::unique_ptr<ThreadPool>> make_pools(Crews crews) {
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (int lane = 0; lane < crews.lanes; ++lane) pools.push_back(std::make_unique<ThreadPool>(crews.threads));
  return pools;
}

}  // namespace

Engine::Engine(const ModelConfig& config, const WeightSource& source, WeightFormat format, Crews crews, Isa isa,
               bool two_stage_head)
    : config_(checked(config)),
      id_(next_engine_id()),
      format_(format),
      pools_(make_pools(crews)),
      kernels_(kernels_for(isa)) {
  ThreadPool packers(crews.lanes * crews.threads);
  vision_ = load_vision(config_, source, format, packers);
  decoder_ = load_decoder(config_, source, format, packers);
  if (two_stage_head && !is_int8(format)) quick_head_.emplace(decoder_.head.view, kernels_, packers);
}

void Engine::check_prompt(const PrefixPtr& prefix, const std::vector<int32_t>& prompt,
                          const search::SearchOptions& options) const {
  check_text({prefix}, {prompt}, "prompts", options.max_new_tokens);
}

void Engine::check_text(const std::vector<PrefixPtr>& prefixes, const TokenLists& ids, const char* name,
                        int64_t new_tokens) const {
  if (prefixes.size() != ids.size())
    throw Error("prefixes: expected one for each of the " + std::to_string(ids.size()) + " " + name + ", got " +
                std::to_string(prefixes.size()));
  for (size_t r = 0; r < prefixes.size(); ++r)
    if (prefixes[r] && prefixes[r]->engine_id != id_)
      throw Error("prefixes[" + std::to_string(r) + "]: was encoded by another engine");
  check_texts(ids, name, new_tokens, {config_.vocab_size, config_.max_positions});
}

TextModel Engine::text_model(ThreadPool& pool) const {
  return {config_, decoder_, kernels_, pool, quick_head_ ? &*quick_head_ : nullptr};
}

Lanes& Engine::lanes() const {
  return lanes_.get([this] {
    std::vector<ThreadPool*> pools;
    for (const std::unique_ptr<ThreadPool>& pool : pools_) pools.push_back(pool.get());
    return std::make_unique<Lanes>(text_model(*pools_[0]), ImageModel{config_, vision_, decoder_, kernels_, *pools_[0]},
                                   pools, stats_);
  });
}

std::vector<PrefixPtr> Engine::encode(const PixelBatch& pixels, const Control& control) const {
  check_pixels(pixels, {config_.vision.image_size, config_.vision.patch_size, config_.num_frames});
  std::vector<PrefixPtr> out;
  for (const std::shared_ptr<Prefix>& prefix : lanes().encode(pixels, control)) {
    prefix->engine_id = id_;
    out.push_back(prefix);
  }
  return out;
}

Buffer Engine::features(const PixelBatch& pixels, const Control& control) const {
  check_pixels(pixels, {config_.vision.image_size, config_.vision.patch_size, config_.num_frames});
  return lanes().features(pixels, control);
}

std::vector<std::vector<search::Result>> Engine::generate(const std::vector<PrefixPtr>& prefixes,
                                                          const TokenLists& prompts,
                                                          const search::SearchOptions& options,
                                                          const OnTokens& on_tokens, const Control& control) const {
  const search::RulesPtr rules = search::make_rules(options, static_cast<int32_t>(config_.vocab_size));
  check_text(prefixes, prompts, "prompts", options.max_new_tokens);
  return lanes().generate({prefixes.data(), prompts.data(), prompts.size()}, rules, on_tokens, control);
}

std::vector<std::vector<float>> Engine::score(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences,
                                              const Control& control) const {
  check_text(prefixes, sequences, "sequences", 0);
  return lanes().score({prefixes.data(), sequences.data(), sequences.size()}, control);
}

Buffer Engine::logits(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences,
                      const Control& control) const {
  check_text(prefixes, sequences, "sequences", 0);
  return lanes().logits({prefixes.data(), sequences.data(), sequences.size()}, control);
}

}  // namespace gitfast::cpu
