#include "engine.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "search/logits.h"

namespace gitfast::cpu {
namespace {

constexpr int64_t kImageTokens = 2048;  // image tokens encoded together: bounds memory, whatever the number of images
constexpr int64_t kTextTokens = 512;    // text tokens of whole rows run together
constexpr int64_t kHeadRows = 64;       // rows of logits that are held at once when only a few of each are read
constexpr int kStepsPerPoll = 8;
constexpr bool kImages = true, kText = false;  // what rows a Compute is for

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

int64_t longest_prefix(const std::vector<Row>& rows) {
  int64_t longest = 0;
  for (const Row& row : rows) longest = std::max(longest, row.prefix ? row.prefix->tokens : 0);
  return longest;
}

int64_t longest_text(const std::vector<Row>& rows) {
  int64_t longest = 0;
  for (const Row& row : rows) longest = std::max(longest, row.length());
  return longest;
}

int64_t total_tokens(const std::vector<Row>& rows) {
  int64_t total = 0;
  for (const Row& row : rows) total += row.length();
  return total;
}

// Tokens of the largest chunk that `take_chunk` makes of `rows`.
int64_t chunk_tokens(const std::vector<Row>& rows) {
  return std::min(total_tokens(rows), std::max(kTextTokens, longest_text(rows)));
}

// Whole rows from `begin` on, as many as one chunk holds; fills `tokens` with theirs, and returns the end.
size_t take_chunk(const std::vector<Row>& rows, size_t begin, SlotLists& slots, std::vector<TextToken>& tokens) {
  tokens.clear();
  size_t end = begin;
  for (; end < rows.size(); ++end) {
    const Row& row = rows[end];
    if (end > begin && static_cast<int64_t>(tokens.size()) + row.length() > kTextTokens) break;
    const int32_t* row_slots = slots.add(row.length());
    for (size_t t = 0; t < row.ids->size(); ++t)
      tokens.push_back({(*row.ids)[t], static_cast<int32_t>(t), row.prefix, row_slots});
  }
  return end;
}

bool ends_row(const std::vector<TextToken>& tokens, size_t i) {
  return i + 1 == tokens.size() || tokens[i + 1].position == 0;
}

// The tokens of the next step: the last one of every live row.
void step_tokens(const search::Search& search, const std::vector<Row>& rows, const SlotLists& slots,
                 std::vector<TextToken>& tokens) {
  tokens.clear();
  for (size_t r = 0; r < search.tokens().size(); ++r) {
    const auto item = static_cast<size_t>(search.items()[r]);
    tokens.push_back({search.tokens()[r], slots.length(r) - 1, rows[item].prefix, slots.row(r)});
  }
}

// How many of the largest logits of a row decide its next token: one, and as many as rules may rule out. 0: all do.
int64_t logits_that_decide(const search::SearchOptions& o) {
  const bool greedy = o.num_beams == 1 && !o.do_sample && o.num_return_sequences == 1;
  if (!greedy || o.repetition_penalty != 1 || o.no_repeat_ngram_size != 0 || !o.allowed.empty()) return 0;
  const size_t ruled_out = o.bad_words.size() + o.suppress_tokens.size() + o.begin_suppress_tokens.size();
  constexpr size_t kEnd = 1, kLast = 1;  // min_new_tokens, ban_last_token
  const auto count = static_cast<int64_t>(1 + ruled_out + kEnd + kLast);
  constexpr int64_t kMany = 100;
  return count <= kMany ? count : 0;
}

// A token whose log-probability is wanted.
struct Target {
  int32_t token;
  int32_t row;  // the caller's
  float* log_probability;
};

// Every token but the last of its row predicts the one after it. Gathers the hidden states of those that do.
std::vector<Target> gather_targets(const Engine::Chunk& chunk, int64_t d, float* inputs,
                                   std::vector<std::vector<float>>& scores) {
  std::vector<Target> targets;
  const Row* row = chunk.rows;
  for (size_t i = 0; i < chunk.tokens.size(); ++i) {
    if (ends_row(chunk.tokens, i)) {
      ++row;
      continue;
    }
    std::vector<float>& out = scores[static_cast<size_t>(row->index)];
    const auto position = static_cast<size_t>(chunk.tokens[i].position);
    inputs = std::copy_n(chunk.hidden + static_cast<int64_t>(i) * d, d, inputs);
    targets.push_back({chunk.tokens[i + 1].id, row->index, &out[position]});
  }
  return targets;
}

// Reports the new token of every item of the last step, `before` being the items that took part. One row per item.
bool report(const search::Search& search, const std::vector<int32_t>& before, const std::vector<Row>& rows,
            const Engine::OnToken& on_token) {
  std::vector<std::vector<search::Result>> ended;
  bool go_on = true;
  size_t live = 0;
  for (int32_t item : before) {
    const auto i = static_cast<size_t>(item);
    int32_t token;
    if (live < search.items().size() && search.items()[live] == item) {
      token = search.tokens()[live++];
    } else {
      if (ended.empty()) ended = search.results();
      token = ended[i][0].tokens.back();
    }
    if (!on_token(rows[i].index, token)) go_on = false;
  }
  return go_on;
}

}  // namespace

Engine::Engine(const ModelConfig& config, const WeightSource& source, WeightFormat format, int num_threads, Isa isa,
               bool two_stage_head)
    : config_(checked(config)),
      id_(next_engine_id()),
      format_(format),
      pool_(choose_num_threads(num_threads)),
      kernels_(kernels_for(isa)),
      vision_(load_vision(config_, source, format == WeightFormat::int8 ? WeightFormat::bf16 : format, pool_)),
      decoder_(load_decoder(config_, source, format, pool_)) {
  if (two_stage_head && format != WeightFormat::int8) quick_head_.emplace(decoder_.head.view, pool_);
}

void Engine::check_pixels(const PixelBatch& p) const {
  const int64_t size = config_.vision.image_size;
  if (p.images < 1 || p.frames < 1) throw Error("pixel_values: expected at least one image and one frame");
  const std::string got = std::to_string(p.height) + "x" + std::to_string(p.width);
  if (!p.interpolate_positions && (p.height != size || p.width != size))
    throw Error("pixel_values: expected images of " + std::to_string(size) + "x" + std::to_string(size) + ", got " +
                got + "; interpolate_positions takes other sizes");
  if (std::min(p.height, p.width) < config_.vision.patch_size)
    throw Error("pixel_values: expected images of at least one patch, " + std::to_string(config_.vision.patch_size) +
                " pixels, got " + got);
  if (p.temporal && config_.num_frames == 0)
    throw Error("pixel_values: expected (B, 3, H, W), got a clip (B, T, 3, H, W); the checkpoint is not a video model");
  if (p.temporal && p.frames > config_.num_frames)
    throw Error("pixel_values: expected clips of at most " + std::to_string(config_.num_frames) + " frames, got " +
                std::to_string(p.frames));
}

Buffer Engine::features(const PixelBatch& pixels) const {
  check_pixels(pixels);
  Compute compute(kernels_, pool_, kImages);
  return vision_features(compute, config_.vision, vision_, pixels);
}

std::vector<PrefixPtr> Engine::encode(const PixelBatch& pixels, const Poll& poll) const {
  check_pixels(pixels);
  const int64_t tokens = pixels.frames * frame_tokens(config_.vision, pixels);
  const int64_t chunk = std::max<int64_t>(1, kImageTokens / tokens);
  Compute compute(kernels_, pool_, kImages);
  std::vector<PrefixPtr> out;
  for (int64_t first = 0; first < pixels.images; first += chunk) {
    const int64_t images = std::min(chunk, pixels.images - first);
    const Buffer features = vision_features(compute, config_.vision, vision_, pixels.part(first, images));
    Buffer projected = project(compute, vision_, features, images * tokens);
    for (const auto& prefix : make_prefixes(compute, config_, decoder_, projected, images, tokens)) {
      prefix->engine_id = id_;
      out.push_back(prefix);
    }
    stats_.encoded_images += images;
    poll();
  }
  return out;
}

void Engine::check_text(const std::vector<PrefixPtr>& prefixes, const TokenLists& ids, const char* name,
                        int64_t new_tokens) const {
  if (prefixes.size() != ids.size())
    throw Error("prefixes: expected one for each of the " + std::to_string(ids.size()) + " " + name + ", got " +
                std::to_string(prefixes.size()));
  for (size_t r = 0; r < ids.size(); ++r) {
    const std::string where = std::string(name) + "[" + std::to_string(r) + "]: ";
    if (prefixes[r] && prefixes[r]->engine_id != id_)
      throw Error("prefixes[" + std::to_string(r) + "]: was encoded by another engine");
    if (ids[r].empty()) throw Error(where + "expected at least one token id");
    const auto length = static_cast<int64_t>(ids[r].size());
    if (length + new_tokens > config_.max_positions)
      throw Error(where + std::to_string(length) + " tokens" +
                  (new_tokens ? " and " + std::to_string(new_tokens) + " new ones" : "") + " exceed the model's " +
                  std::to_string(config_.max_positions) + " text positions");
    for (int32_t id : ids[r])
      if (id < 0 || id >= config_.vocab_size)
        throw Error(where + "token id " + std::to_string(id) + " is outside the vocabulary of " +
                    std::to_string(config_.vocab_size));
  }
}

void Engine::prefill(Compute& compute, const std::vector<Row>& rows, TextState& state, SlotLists& slots,
                     std::vector<TextToken>& tokens, float* last, const Poll& poll) const {
  const int64_t d = config_.hidden_size;
  for (size_t begin = 0; begin < rows.size();) {
    begin = take_chunk(rows, begin, slots, tokens);
    const float* hidden = state.forward(compute, decoder_, tokens);
    for (size_t i = 0; i < tokens.size(); ++i, hidden += d)
      if (ends_row(tokens, i)) last = std::copy_n(hidden, d, last);
    stats_.prefill_tokens += static_cast<int64_t>(tokens.size());
    poll();
  }
}

std::vector<std::vector<search::Result>> Engine::generate(const std::vector<PrefixPtr>& prefixes,
                                                          const TokenLists& prompts,
                                                          const search::SearchOptions& options, const OnToken& on_token,
                                                          const Poll& poll) const {
  check_text(prefixes, prompts, "prompts", options.max_new_tokens);
  if (on_token && (options.num_beams != 1 || options.num_return_sequences != 1))
    throw Error("on_token: expected num_beams and num_return_sequences 1; other tokens are final only at the end");
  if (prompts.empty()) return {};
  const std::vector<Row> rows = rows_by_prefix(prefixes, prompts);
  TokenLists ordered;
  for (const Row& row : rows) ordered.push_back(*row.ids);
  search::Search search(options, std::move(ordered), static_cast<int32_t>(config_.vocab_size));

  const int64_t d = config_.hidden_size, vocab = config_.vocab_size, new_tokens = options.max_new_tokens;
  const int64_t width = std::max(options.num_beams, options.do_sample ? options.num_return_sequences : 1);
  const int64_t max_rows = static_cast<int64_t>(rows.size()) * width;
  TextState state(config_, total_tokens(rows) + max_rows * new_tokens, std::max(chunk_tokens(rows), max_rows),
                  longest_prefix(rows), pool_.num_threads());
  SlotLists slots(max_rows, longest_text(rows) + new_tokens);
  Buffer logits = float_buffer(max_rows * vocab), last = float_buffer(max_rows * d);
  std::vector<TextToken> tokens;
  tokens.reserve(static_cast<size_t>(std::max(chunk_tokens(rows), max_rows)));

  Compute compute(kernels_, pool_, kText);
  const int64_t largest = logits_that_decide(options);
  prefill(compute, rows, state, slots, tokens, last.floats(), poll);
  const float* hidden = last.floats();
  std::vector<int32_t> items;
  for (int step = 1;; ++step) {
    items = search.items();
    if (quick_head_ && largest)
      quick_head_->logits(compute, hidden, search.num_rows(), largest, logits.floats());
    else
      compute.linear(hidden, search.num_rows(), decoder_.head.view, logits.floats());
    search.advance(logits.floats(), vocab);
    if (on_token && !report(search, items, rows, on_token)) search.stop();
    if (search.done()) break;
    if (step % kStepsPerPoll == 0) poll();
    slots.advance(search.parents());
    step_tokens(search, rows, slots, tokens);
    hidden = state.forward(compute, decoder_, tokens);
    ++stats_.decode_steps;
  }

  std::vector<std::vector<search::Result>> found = search.results(), results(found.size());
  for (size_t i = 0; i < rows.size(); ++i) results[static_cast<size_t>(rows[i].index)] = std::move(found[i]);
  return results;
}

void Engine::run_sequences(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences, const Poll& poll,
                           const std::function<void(Compute&, const Chunk&)>& use) const {
  check_text(prefixes, sequences, "sequences", 0);
  const std::vector<Row> rows = rows_by_prefix(prefixes, sequences);
  const int64_t capacity = chunk_tokens(rows);
  TextState state(config_, capacity, capacity, longest_prefix(rows), pool_.num_threads());
  SlotLists slots(capacity, longest_text(rows));
  std::vector<TextToken> tokens;
  Compute compute(kernels_, pool_, kText);
  for (size_t begin = 0; begin < rows.size();) {
    slots.clear();
    const size_t end = take_chunk(rows, begin, slots, tokens);
    use(compute, {rows.data() + begin, tokens, state.forward(compute, decoder_, tokens)});
    stats_.prefill_tokens += static_cast<int64_t>(tokens.size());
    begin = end;
    poll();
  }
}

std::vector<std::vector<float>> Engine::score(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences,
                                              const Poll& poll) const {
  const int64_t d = config_.hidden_size, vocab = config_.vocab_size;
  std::vector<std::vector<float>> scores;
  for (const std::vector<int32_t>& s : sequences) scores.emplace_back(s.empty() ? 0 : s.size() - 1);
  Buffer logits = float_buffer(kHeadRows * vocab);
  run_sequences(prefixes, sequences, poll, [&](Compute& compute, const Chunk& chunk) {
    Buffer inputs = float_buffer(static_cast<int64_t>(chunk.tokens.size()) * d);
    const std::vector<Target> targets = gather_targets(chunk, d, inputs.floats(), scores);
    for (int64_t first = 0, n = static_cast<int64_t>(targets.size()); first < n; first += kHeadRows) {
      const int64_t count = std::min(kHeadRows, n - first);
      compute.linear(inputs.floats() + first * d, count, decoder_.head.view, logits.floats());
      compute.parallel(count, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const Target& t = targets[static_cast<size_t>(first + i)];
          const float* row = logits.floats() + i * vocab;
          *t.log_probability = search::normalizer(row, vocab, t.row).log_probability(row[t.token]);
        }
      });
    }
  });
  return scores;
}

Buffer Engine::logits(const std::vector<PrefixPtr>& prefixes, const TokenLists& sequences, const Poll& poll) const {
  const int64_t d = config_.hidden_size, vocab = config_.vocab_size;
  std::vector<int64_t> offsets{0};
  for (const std::vector<int32_t>& s : sequences) offsets.push_back(offsets.back() + static_cast<int64_t>(s.size()));
  Buffer out = float_buffer(offsets.back() * vocab);
  run_sequences(prefixes, sequences, poll, [&](Compute& compute, const Chunk& chunk) {
    const Row* row = chunk.rows;
    for (size_t i = 0; i < chunk.tokens.size(); i += row->ids->size(), ++row)
      compute.linear(chunk.hidden + static_cast<int64_t>(i) * d, row->length(), decoder_.head.view,
                     out.floats() + offsets[static_cast<size_t>(row->index)] * vocab);
  });
  return out;
}

}  // namespace gitfast::cpu
