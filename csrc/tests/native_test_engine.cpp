// The running batch and its lanes, on a model of random weights.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "cpu/kernels.h"
#include "tensor.h"
#include "tests/native_test.h"

namespace gitfast::cpu {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A model of random weights, on which captions depend on everything.
std::unique_ptr<Engine> tiny_engine(Crews crews) {
  ModelConfig config;
  config.vision = {32, 48, 2, 2, 32, 8, 1e-5f};
  config.vocab_size = 50;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_layers = 2;
  config.num_heads = 2;
  config.max_positions = 40;
  Floats values;
  const auto shape_of = [&](const std::string& name) -> std::vector<int64_t> {
    const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    const bool vector = has("bias") || has("norm") || has("LayerNorm") || has("layrnorm") || has("visual_projection.1");
    if (has("class_embedding")) return {32};
    if (has("patch_embedding")) return {32, 3, 8, 8};
    if (has("image_encoder") && has("position_embedding")) return {17, 32};
    if (has("position_embeddings")) return {40, 32};
    if (has("word_embeddings")) return {50, 32};
    if (name.rfind("output.", 0) == 0) return vector ? std::vector<int64_t>{50} : std::vector<int64_t>{50, 32};
    if (has("fc1") || has("intermediate.dense"))
      return vector ? std::vector<int64_t>{48} : std::vector<int64_t>{48, 32};
    if ((has("fc2") || (has(".output.dense") && !has("attention"))) && !vector) return {32, 48};
    return vector ? std::vector<int64_t>{32} : std::vector<int64_t>{32, 32};
  };
  const WeightSource source = [&](const std::string& name) {
    const std::vector<int64_t> shape = shape_of(name);
    TensorView t;
    int64_t stride = 1;
    t.ndim = static_cast<int>(shape.size());
    for (int i = t.ndim - 1; i >= 0; --i) {
      t.shape[i] = shape[static_cast<size_t>(i)];
      t.strides[i] = stride;
      stride *= t.shape[i];
    }
    values = whole_numbers(stride, static_cast<uint32_t>(std::hash<std::string>()(name)));
    for (float& v : values) v *= 0.1f;
    t.data = values.data();
    return t;
  };
  return std::make_unique<Engine>(config, source, WeightFormat::f32, crews, Isa::scalar, false);
}

// Calls from many threads: joins, leaves, callbacks that throw or stop, cancelling, encodings, scores. Each gets what
// it gets alone.
void test_calls_of_many_threads(Crews crews) {
  const std::unique_ptr<Engine> engine = tiny_engine(crews);
  const std::unique_ptr<Engine> one_lane = tiny_engine({1, 1});
  const Floats images = whole_numbers(3 * 3 * 32 * 32, 7);
  PixelBatch pixels;
  pixels.data = images.data();
  pixels.images = 3;
  pixels.height = pixels.width = 32;
  const Control free;
  std::vector<PrefixPtr> prefixes = engine->encode(pixels, free), alone = one_lane->encode(pixels, free);
  prefixes.push_back(nullptr);
  alone.push_back(nullptr);
  const TokenLists prompts{{2, 5, 6}, {2}, {2, 9, 9, 20, 30}, {2, 8}};
  std::vector<search::SearchOptions> options(3);
  for (search::SearchOptions& o : options) o.max_new_tokens = 12, o.eos = {3};
  options[1].num_beams = 3;
  options[2].do_sample = true;
  options[2].num_return_sequences = 4;
  options[2].seed = 5;
  std::vector<std::vector<std::vector<search::Result>>> want;
  for (const search::SearchOptions& o : options) {
    want.emplace_back();
    for (size_t r = 0; r < prompts.size(); ++r)
      want.back().push_back(one_lane->generate({alone[r]}, {prompts[r]}, o, nullptr, free)[0]);
  }
  const auto same = [](const std::vector<search::Result>& a, const std::vector<search::Result>& b) {
    for (size_t i = 0; i < a.size(); ++i)
      if (a[i].tokens != b[i].tokens || a[i].logprobs != b[i].logprobs || a[i].score != b[i].score) return false;
    return a.size() == b.size();
  };
  const std::vector<std::vector<float>> scores = one_lane->score(alone, prompts, free);

  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 12; ++i) {
        const auto o = static_cast<size_t>((caller + i) % 3);
        switch ((caller * 5 + i) % 6) {
          case 0:
          case 1: {
            const auto found = engine->generate(prefixes, prompts, options[o], nullptr, free);
            for (size_t r = 0; r < prompts.size(); ++r) EXPECT(same(found[r], want[o][r]));
            break;
          }
          case 2: {
            TokenLists told(prompts.size());
            const auto found = engine->generate(
                prefixes, prompts, options[0],
                [&](int32_t row, const std::vector<int32_t>& tokens) {
                  TokenLists::value_type& mine = told[static_cast<size_t>(row)];
                  mine.insert(mine.end(), tokens.begin(), tokens.end());
                  return row != 1 || mine.size() < 3;
                },
                free);
            for (size_t r = 0; r < prompts.size(); ++r) {
              EXPECT(told[r] == found[r][0].tokens);
              EXPECT(r == 1 || same(found[r], want[0][r]));
            }
            break;
          }
          case 3: {
            bool thrown = false;
            try {
              engine->generate(
                  prefixes, prompts, options[o], [&](int32_t, const auto&) -> bool { throw Error("mine"); }, free);
            } catch (const Error& error) {
              thrown = std::string(error.what()) == "mine";
            }
            EXPECT(thrown);
            break;
          }
          case 4: {
            const auto flag = std::make_shared<CancelFlag>();
            std::thread other([&] { flag->cancel(); });
            try {
              for (;;) engine->generate(prefixes, prompts, options[o], nullptr, {flag, nullptr});
            } catch (const Cancelled&) {
            }
            other.join();
            break;
          }
          default: {
            EXPECT(engine->encode(pixels, free).size() == 3);
            EXPECT(engine->score(prefixes, prompts, free) == scores);
          }
        }
      }
    });
  for (std::thread& t : callers) t.join();
}

// Parts of a call in several lanes: the first error is the call's, with the row's number in the call; the other parts
// end; a poll is heard while they run; and the engine goes on.
void test_a_divided_call_ends_as_one() {
  const std::unique_ptr<Engine> engine = tiny_engine({3, 1});
  Floats values = whole_numbers(6 * 3 * 32 * 32, 7);
  PixelBatch pixels;
  pixels.images = 6;
  pixels.height = pixels.width = 32;
  std::fill(values.end() - 3 * 32 * 32, values.end(), kNan);
  pixels.data = values.data();
  std::vector<PrefixPtr> prefixes = engine->encode(pixels, {});
  search::SearchOptions options;
  options.max_new_tokens = options.min_new_tokens = 30;
  options.eos = {3};
  const TokenLists prompts(6, {2, 5});
  std::string message;
  try {
    engine->generate(prefixes, prompts, options, nullptr, {});
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT(message.rfind("prompts[5]: logits: NaN", 0) == 0);
  prefixes.back() = nullptr;
  const std::vector<PrefixPtr> many(3000, nullptr);
  const TokenLists texts(3000, {2, 5});
  for (const bool by_poll : {false, true}) {
    const auto flag = std::make_shared<CancelFlag>(Clock::now() + std::chrono::milliseconds(20));
    Control control{by_poll ? nullptr : flag, nullptr};
    if (by_poll) control.poll = [] { throw std::out_of_range("polled"); };
    std::string ended;
    try {
      for (;;) engine->generate(many, texts, options, nullptr, control);
    } catch (const DeadlinePassed&) {
      ended = "late";
    } catch (const std::out_of_range& error) {
      ended = error.what();
    }
    EXPECT(ended == (by_poll ? "polled" : "late"));
  }
  EXPECT(engine->generate(prefixes, prompts, options, nullptr, {}).size() == 6);
  EXPECT(engine->generate({}, {}, options, nullptr, {}).empty());
}

// Once its callback has thrown, the only call there was keeps no prefix.
void test_a_call_leaves_nothing_behind() {
  const std::unique_ptr<Engine> engine = tiny_engine({1, 1});
  const Floats image = whole_numbers(3 * 32 * 32, 7);
  PixelBatch pixels;
  pixels.images = 1;
  pixels.height = pixels.width = 32;
  pixels.data = image.data();
  const std::vector<PrefixPtr> prefixes = engine->encode(pixels, {});
  search::SearchOptions options;
  options.max_new_tokens = 12;
  options.eos = {3};
  std::string ended;
  try {
    engine->generate(prefixes, {{2, 5}}, options, [](int32_t, const auto&) -> bool { throw Error("mine"); }, {});
  } catch (const Error& error) {
    ended = error.what();
  }
  EXPECT(ended == "mine" && prefixes[0].use_count() == 1);
}

// Whichever allocation fails, calls end, with their results or std::bad_alloc, and the engine goes on. A call that is
// forgotten hangs.
void test_memory_that_is_not_to_be_had(Crews crews) {
  const std::unique_ptr<Engine> engine = tiny_engine(crews);
  const Floats images = whole_numbers(3 * 3 * 32 * 32, 7);
  PixelBatch pixels;
  pixels.images = 3;
  pixels.height = pixels.width = 32;
  pixels.data = images.data();
  const std::vector<PrefixPtr> prefixes = engine->encode(pixels, {});
  const TokenLists prompts{{2, 5, 6}, {2}, {2, 9, 9, 20, 30}};
  search::SearchOptions greedy, beams;
  greedy.max_new_tokens = beams.max_new_tokens = 12;
  greedy.eos = beams.eos = {3};
  beams.num_beams = 3;
  const auto flag = std::make_shared<CancelFlag>();
  flag->cancel();
  const std::vector<std::function<void()>> calls{
      [&] { engine->generate(prefixes, prompts, greedy, nullptr, {}); },
      [&] { engine->generate(prefixes, prompts, beams, nullptr, {}); },
      [&] { engine->generate(prefixes, prompts, greedy, [](int32_t row, const auto&) { return row != 1; }, {}); },
      [&] {
        engine->generate(prefixes, prompts, beams, [](int32_t, const auto&) -> bool { throw Error("mine"); }, {});
      },
      [&] { engine->generate(prefixes, prompts, greedy, nullptr, {flag, nullptr}); },
      [&] { engine->score(prefixes, prompts, {}); },
      [&] { engine->encode(pixels, {}); },
  };
  const auto may_fail = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const std::bad_alloc&) {
    } catch (const Error&) {
    } catch (const Cancelled&) {
    }
  };
  const auto tokens = [&] {
    TokenLists found;
    for (const auto& row : engine->generate(prefixes, prompts, greedy, nullptr, {})) found.push_back(row[0].tokens);
    return found;
  };
  const TokenLists expected = tokens();
  for (const std::function<void()>& call : calls) {
    int64_t left = 0;
    for (int64_t nth = 1; left == 0; nth += 1 + nth / 32) {
      std::thread other([&] {
        for (size_t i : {1, 6}) may_fail(calls[i]);
      });
      failing_allocation = nth;
      may_fail(call);
      other.join();
      left = failing_allocation.exchange(0);
      EXPECT(tokens() == expected);
    }
  }
}

}  // namespace

void test_engine() {
  std::printf("running batch\n");
  test_calls_of_many_threads({1, 2});
  test_a_call_leaves_nothing_behind();
  test_memory_that_is_not_to_be_had({1, 2});
  std::printf("lanes\n");
  test_calls_of_many_threads({2, 1});
  test_calls_of_many_threads({3, 2});
  test_a_divided_call_ends_as_one();
  test_memory_that_is_not_to_be_had({3, 1});
}

}  // namespace gitfast::cpu
