// The kernels, the thread pool and the running batch without Python, for the sanitizers: csrc/tests/run.sh runs this
// under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer. Numbers are compared in tests/cpu;
// here every array has its exact size, outputs start as NaN, and threads meet in as many ways as they can.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/policy.h"
#include "cpu/threads.h"
#include "tensor.h"

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace gitfast::cpu {

extern const Kernels kEmulatedAmxKernels;  // kernels_amx_emulated.cpp

namespace {

using Floats = std::vector<float>;
using Words = std::vector<uint32_t>;
constexpr uint32_t kNanWord = 0x7fc07fc0u;  // as a float32, and as two bfloat16
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Whole numbers from -4 to 4: sums of their products are exact in any order.
Floats whole_numbers(int64_t n, uint32_t seed) {
  Floats values(static_cast<size_t>(n));
  for (float& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int>(seed >> 24) % 9 - 4);
  }
  return values;
}

struct Linear {
  int64_t m, n, k;
  WeightFormat format;
  Floats x, w, bias, residual, scales, y;
  Words panels, rounded;

  Linear(int64_t m, int64_t n, int64_t k, WeightFormat format)
      : m(m),
        n(n),
        k(k),
        format(format),
        x(whole_numbers(m * k, 1)),
        w(whole_numbers(n * k, 2)),
        bias(whole_numbers(n, 3)),
        residual(whole_numbers(m * n, 4)),
        scales(format == WeightFormat::int8 ? static_cast<size_t>(n) : 0, kNan),
        y(static_cast<size_t>(m * n), kNan),
        panels(static_cast<size_t>(PackedLinear{n, k, format}.num_panels() * PackedLinear{n, k, format}.panel_words()),
               0),
        rounded(static_cast<size_t>((m + kRoundedPadding) * std::max(rounded_words(k), quantized_words(k))), kNanWord) {
    for (int64_t c = 0; c < n; ++c) w[static_cast<size_t>(c * k)] = 127;  // the scale of int8 is 1
    const int64_t half = n / 2;  // in two calls, as fused projections are packed
    pack_linear_rows(w.data(), false, half, k, 0, format, panels.data(), scales.data());
    pack_linear_rows(w.data() + half * k, false, n - half, k, half, format, panels.data(), scales.data());
  }

  PackedLinear packed() const {
    return {n, k, format, panels.data(), scales.empty() ? nullptr : scales.data(), bias.data()};
  }

  void run(const Kernels& kernels, ThreadPool& pool) {
    if (const Kernels::Rounding rounding = kernels.rounding(format, m)) rounding(x.data(), k, m, k, rounded.data());
    const PackedLinear weights = packed();
    const LinearArgs args{x.data(), k, rounded.data(), m, &weights, Activation::none, residual.data(), y.data(), n};
    pool.parallel_for(weights.num_panels(), 1,
                      [&](int64_t begin, int64_t end, int) { kernels.linear(args, begin, end); });
  }

  bool correct() const {
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < n; ++c) {
        const float* row = x.data() + r * k;
        const float product = std::inner_product(row, row + k, w.data() + c * k, 0.0f);
        if (y[static_cast<size_t>(r * n + c)] !=
            product + bias[static_cast<size_t>(c)] + residual[static_cast<size_t>(r * n + c)])
          return false;
      }
    return true;
  }
};

void test_linear(const Kernels& kernels, WeightFormat format) {
  ThreadPool pool(3);
  for (int64_t m : {1, 2, 3, 4, 7, 12, 13, 16, 17, 32, 40, 205})
    for (int64_t n : {1, 31, 32, 100})
      for (int64_t k : {1, 60, 257, 512, 544}) {
        Linear linear(m, n, k, format);
        linear.run(kernels, pool);
        EXPECT(linear.correct());
      }
}

// To the bit, with terms whose sums depend on their order.
void test_rows_do_not_depend_on_their_number(const Kernels& kernels, WeightFormat format) {
  constexpr int64_t kRows = 70, kColumns = 70, kTerms = 621;
  const auto with_fractions = [](Linear& linear) {
    for (size_t i = 0; i < linear.x.size(); ++i) linear.x[i] *= 1.0f / static_cast<float>(1 + i % 13);
  };
  ThreadPool pool(1);
  Linear all(kRows, kColumns, kTerms, format);
  with_fractions(all);
  all.run(kernels, pool);
  for (int64_t m : {1, 2, 15, 16, 17, 31, 32, 33, 64}) {
    Linear some(m, kColumns, kTerms, format);
    with_fractions(some);
    some.run(kernels, pool);
    EXPECT(std::equal(some.y.begin(), some.y.end(), all.y.begin()));
  }
}

// Equal scores: the result is the mean of the values each row sees, and NaN anywhere else must not reach it.
void test_attention(const Kernels& kernels, WeightFormat format) {
  constexpr int64_t kSlots = 80;
  for (int64_t rows : {1, 2, 12, 16, 17, 35})
    for (int64_t prefix : {0, 1, 16, 33, 300})
      for (int64_t d : {1, 16, 40, 64}) {
        Floats q = whole_numbers(rows * d, 1), keys(static_cast<size_t>(prefix * d), 0.0f);
        Floats values(static_cast<size_t>(prefix * d), 1.0f);
        Words packed_keys(static_cast<size_t>(packed_key_words(format, prefix, d)), kNanWord);
        Words packed_values(static_cast<size_t>(packed_value_words(format, prefix, d)), kNanWord);
        kernels.pack_head(keys.data(), values.data(), d, prefix, d, format, packed_keys.data(), packed_values.data());
        for (uint32_t word : packed_keys) EXPECT(word == 0);  // the padding too
        Floats text_keys(static_cast<size_t>(kSlots * d), kNan), text_values(static_cast<size_t>(kSlots * d), kNan);
        std::vector<std::vector<int32_t>> slots(static_cast<size_t>(rows));
        std::vector<const int32_t*> pointers;
        std::vector<int32_t> lengths;
        int64_t longest = 0;
        for (int64_t r = 0; r < rows; ++r) {
          auto& mine = slots[static_cast<size_t>(r)];
          for (int64_t t = 0; t <= r; ++t) mine.push_back(static_cast<int32_t>(2 * t + 1));
          for (int32_t s : mine)
            for (int64_t i = 0; i < d; ++i) {
              text_keys[static_cast<size_t>(s * d + i)] = 0.0f;
              text_values[static_cast<size_t>(s * d + i)] = 3.0f;
            }
          pointers.push_back(mine.data());
          lengths.push_back(static_cast<int32_t>(mine.size()));
          longest = std::max<int64_t>(longest, lengths.back());
        }
        Floats out(static_cast<size_t>(rows * d), kNan);
        Floats scratch(static_cast<size_t>(attention_scratch_floats(d, prefix, longest)), kNan);
        AttentionArgs args;
        args.q = q.data();
        args.q_stride = args.out_stride = args.text_stride = args.head_dim = d;
        args.rows = rows;
        args.scale = 1.0f;
        args.prefix = {format, packed_keys.data(), packed_values.data(), prefix};
        args.k_text = text_keys.data();
        args.v_text = text_values.data();
        args.slots = pointers.data();
        args.text_len = lengths.data();
        args.out = out.data();
        args.scratch = scratch.data();
        kernels.attention(args);
        for (int64_t r = 0; r < rows; ++r) {
          const auto text = static_cast<float>(r + 1), image = static_cast<float>(prefix);
          for (int64_t i = 0; i < d; ++i)
            EXPECT(std::fabs(out[static_cast<size_t>(r * d + i)] - (image + 3 * text) / (image + text)) < 1e-5f);
        }
      }
}

// Beside the scalar kernels, within the rounding of queries and softmax numerators to bfloat16; and each row to the bit
// as it is with fewer rows beside it.
void test_attention_beside_scalar(const Kernels& kernels, WeightFormat format) {
  constexpr int64_t kRows = 40;
  const auto eighths = [](int64_t n, uint32_t seed) {
    Floats values = whole_numbers(n, seed);
    for (float& v : values) v /= 8;
    return values;
  };
  for (int64_t prefix : {1, 31, 32, 197})
    for (int64_t d : {2, 24, 64, 96}) {
      const Floats q = whole_numbers(kRows * d, 1), keys = eighths(prefix * d, 2),
                   values = whole_numbers(prefix * d, 3);
      Words packed_keys(static_cast<size_t>(packed_key_words(format, prefix, d)), kNanWord);
      Words packed_values(static_cast<size_t>(packed_value_words(format, prefix, d)), kNanWord);
      const auto attend = [&](const Kernels& with, int64_t rows) {
        with.pack_head(keys.data(), values.data(), d, prefix, d, format, packed_keys.data(), packed_values.data());
        Floats out(static_cast<size_t>(rows * d), kNan);
        Floats scratch(static_cast<size_t>(attention_scratch_floats(d, prefix, 0)), kNan);
        AttentionArgs args;
        args.q = q.data();
        args.q_stride = args.out_stride = args.head_dim = d;
        args.rows = rows;
        args.scale = 1.0f / std::sqrt(static_cast<float>(d));
        args.prefix = {format, packed_keys.data(), packed_values.data(), prefix};
        args.out = out.data();
        args.scratch = scratch.data();
        with.attention(args);
        return out;
      };
      const Floats expected = attend(kernels_for(Isa::scalar), kRows), all = attend(kernels, kRows);
      for (size_t i = 0; i < all.size(); ++i) EXPECT(std::fabs(all[i] - expected[i]) < 0.03f);
      for (int64_t rows : {1, 13, 16, 17, 33}) {
        const Floats some = attend(kernels, rows);
        EXPECT(std::equal(some.begin(), some.end(), all.begin()));
      }
    }
}

void test_layer_norm(const Kernels& kernels) {
  for (int64_t d : {1, 15, 16, 17, 100}) {
    Floats x = whole_numbers(3 * d, 5), gamma(static_cast<size_t>(d), 1.0f), beta(static_cast<size_t>(d), 2.0f);
    Floats y(static_cast<size_t>(3 * d), kNan);
    kernels.layer_norm(x.data(), d, gamma.data(), beta.data(), 1e-5f, 3, d, y.data(), d);
    for (int64_t r = 0; r < 3; ++r) {
      const float sum = std::accumulate(y.begin() + r * d, y.begin() + (r + 1) * d, 0.0f);
      EXPECT(std::fabs(sum / static_cast<float>(d) - 2.0f) < 1e-5f);
    }
  }
}

void test_parts_cover_the_range_once() {
  for (int threads : {1, 2, 5})
    for (int64_t n : {0, 1, 2, 7, 100})
      for (int64_t grain : {1, 3, 32}) {
        ThreadPool pool(threads);
        std::vector<int> count(static_cast<size_t>(n), 0);
        std::vector<std::atomic<bool>> in_use(static_cast<size_t>(threads));
        std::atomic<int> parts{0};
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT(begin < end && begin % grain == 0 && (end % grain == 0 || end == n));
          EXPECT(!in_use[static_cast<size_t>(thread)].exchange(true));
          parts += 1;
          for (int64_t i = begin; i < end; ++i) count[static_cast<size_t>(i)] += 1;
          in_use[static_cast<size_t>(thread)] = false;
        });
        for (int c : count) EXPECT(c == 1);
        EXPECT(parts <= threads);
      }
}

void test_exceptions_come_back_after_every_part() {
  ThreadPool pool(4);
  for (int failing = 0; failing < 4; ++failing) {
    std::atomic<int> ended{0};
    std::string message;
    try {
      pool.parallel_for(4, 1, [&](int64_t begin, int64_t, int) {
        if (begin == failing) throw Error("part " + std::to_string(begin));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        ended.fetch_add(1);
      });
    } catch (const Error& e) {
      message = e.what();
    }
    EXPECT(message == "part " + std::to_string(failing));
    EXPECT(ended.load() == 3);
  }
  int64_t sum = 0;
  pool.parallel_for(1, 1, [&](int64_t, int64_t end, int) { sum += end; });
  EXPECT(sum == 1);
}

void test_a_region_inside_a_region_runs_in_place() {
  ThreadPool pool(3);
  std::vector<int64_t> sums(3, 0);
  pool.parallel_for(3, 1, [&](int64_t begin, int64_t, int thread) {
    pool.parallel_for(10, 1, [&](int64_t b, int64_t e, int inner) {
      EXPECT(inner == thread);
      sums[static_cast<size_t>(begin)] += e - b;
    });
  });
  for (int64_t s : sums) EXPECT(s == 10);
}

// Callers of one pool queue; pauses longer than the spin make threads park and wake.
void test_many_callers() {
  ThreadPool shared(3);
  int64_t unguarded = 0;  // written by one caller at a time: a race here is a pool that lets two in
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&, caller] {
      ThreadPool own(2);
      for (int i = 0; i < 60; ++i) {
        int64_t parts[3] = {};
        shared.parallel_for(3, 1, [&](int64_t begin, int64_t end, int) {
          parts[begin] = end;
          if (begin == 0) unguarded += 1;
        });
        EXPECT(parts[0] + parts[1] + parts[2] == 6);
        if (i % 20 == caller) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        own.parallel_for(2, 1, [&](int64_t begin, int64_t, int) { parts[begin] = 0; });
        EXPECT(parts[0] + parts[1] == 0);
      }
    });
  for (std::thread& t : callers) t.join();
  EXPECT(unguarded == 360);
}

void test_pools_come_and_go() {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    if (i % 3) pool.parallel_for(8, 1, [](int64_t, int64_t, int) {});
    if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void test_fork() {
#if !defined(__SANITIZE_THREAD__)  // which refuses new threads in a forked child
  ThreadPool pool(3);
  const auto work = [&] {
    std::atomic<int64_t> sum{0};
    pool.parallel_for(30, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    return sum.load() == 30;
  };
  EXPECT(work());
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) EXPECT(work());
  });
  for (int i = 0; i < 10; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      _exit(work() && work() ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT(status == 0);
  }
  stop = true;
  busy.join();
#endif
}

// Encoding with rows that decode, in simulated time: what the policy makes of slices and steps that take so long.
struct Simulation {
  double slice, step;  // seconds
  double longest_gap = 0;
  int64_t slices = 0, steps = 0;

  void run(double duration) {
    Work work{4, true, 0, 0, step, slice};
    for (double now = 0, last = 0; now < duration;) {
      work.since_step = now - last;
      const Action action = next_action(work);
      EXPECT(action != Action::idle);
      now += action == Action::slice ? slice : step;
      if (action == Action::slice) {
        ++slices;
        ++work.slices;
      } else {
        longest_gap = std::max(longest_gap, now - last);
        last = now;
        ++steps;
        work.slices = 0;
      }
    }
  }
};

void test_policy_bounds_the_gap_between_tokens() {
  for (double slice : {0.0005, 0.002, 0.008, 0.014})
    for (double step : {0.001, 0.005, 0.015}) {
      Simulation simulation{slice, step};
      simulation.run(10);
      EXPECT(simulation.longest_gap <= kTokenGapSeconds + 1e-9);
      EXPECT(static_cast<double>(simulation.slices) * slice >= 10 * 0.4 * (1 - step / kTokenGapSeconds));
    }
  Simulation slow{0.035, 0.012};  // three slices, and a step
  slow.run(10);
  EXPECT(slow.longest_gap > kTokenGapSeconds && slow.longest_gap <= kSlowTokenGapSeconds);
  EXPECT(std::abs(slow.slices - 3 * slow.steps) <= 3);
  slow = {0.1, 0.03};  // no gap can be kept: they take turns
  slow.run(12);
  EXPECT(slow.slices - slow.steps <= 1 && slow.steps - slow.slices <= 1);
  EXPECT(next_action({}) == Action::idle);
  EXPECT(next_action({1, false}) == Action::step);
  EXPECT(next_action({0, true}) == Action::slice);

  Work none, rows{3, true, 0, 0, 0.010, 0};
  EXPECT(images_together(8, 8, 10, 2, none, 0.05) == 8);     // one call's own
  EXPECT(images_together(40, 40, 10, 2, none, 0.05) == 10);  // memory
  EXPECT(images_together(8, 1, 10, 2, none, 0.05) == 2);     // of several calls: until the threads are busy
  EXPECT(images_together(1, 1, 10, 2, none, 0.05) == 1);
  EXPECT(images_together(8, 8, 10, 2, rows, 0.0048) == 4);  // 20 ms are left of the gap
  EXPECT(images_together(8, 8, 10, 2, rows, 0.050) == 1);
}

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

void test_spreading_over_lanes() {
  using Counts = std::vector<int64_t>;
  EXPECT((spread({5}, {0, 0}) == Counts{1, 0}));
  EXPECT((spread({5}, {3, 2, 4}) == Counts{0, 1, 0}));
  EXPECT((spread(Counts(8, 197), {0, 0}) == Counts{4, 4}));
  EXPECT((spread(Counts(8, 10), {0, 40}) == Counts{6, 2}));  // both are done at the same time
  EXPECT((spread(Counts(3, 10), {100, 0}) == Counts{0, 3}));
  EXPECT((spread({}, {1, 2}) == Counts{0, 0}));
}

void test_crews() {
  const auto is = [](Crews crews, int lanes, int threads) { return crews.lanes == lanes && crews.threads == threads; };
  setenv("GITFAST_NUM_THREADS", "6", 1);
  EXPECT(is(choose_crews(0, 0), 1, 6));
  EXPECT(is(choose_crews(2, 0), 2, 3));
  EXPECT(is(choose_crews(4, 0), 4, 1));
  EXPECT(is(choose_crews(9, 0), 9, 1));
  EXPECT(is(choose_crews(0, 4), 1, 4));
  EXPECT(is(choose_crews(3, 4), 3, 4));
  setenv("GITFAST_NUM_THREADS", "64", 1);
  EXPECT(is(choose_crews(0, 0), 4, 16));
  unsetenv("GITFAST_NUM_THREADS");
  for (const auto& [threads, lanes] : {std::pair{1, 1}, {2, 1}, {8, 1}, {31, 1}, {32, 2}, {64, 4}})
    EXPECT(default_lanes(threads) == lanes);
  for (const auto& [lanes, threads] : {std::pair{-1, 1}, {2000, 1}, {1024, 2}}) {
    bool thrown = false;
    try {
      choose_crews(lanes, threads);
    } catch (const Error& error) {
      thrown = std::string(error.what()).rfind("num_lanes", 0) == 0;
    }
    EXPECT(thrown);
  }
}

void test_cgroup_quota() {
  char root[] = "/tmp/gitfast-cgroup-XXXXXX";
  EXPECT(mkdtemp(root) != nullptr);
  const std::string base = root;
  const auto write = [&](const std::string& name, const std::string& text) { std::ofstream(base + name) << text; };
  const auto quota = [&] { return cgroup_cpus(base + "/membership", base); };
  constexpr int kNone = std::numeric_limits<int>::max();
  EXPECT(quota() == kNone);
  write("/cpu.max", "max 100000\n");
  EXPECT(quota() == kNone);
  write("/cpu.max", "250000 100000\n");
  EXPECT(quota() == 3);
  EXPECT(std::system(("mkdir -p " + base + "/a/b " + base + "/cpu/old").c_str()) == 0);
  write("/membership", "0::/a/b\n");
  write("/a/cpu.max", "150000 100000\n");
  EXPECT(quota() == 2);
  write("/a/b/cpu.max", "1000 100000\n");
  EXPECT(quota() == 1);
  write("/a/b/cpu.max", "nonsense\n");
  EXPECT(quota() == 2);
  write("/membership", "7:memory:/a\n3:cpu,cpuacct:/old\n");
  EXPECT(quota() == 3);
  write("/cpu/old/cpu.cfs_quota_us", "100000\n");
  write("/cpu/old/cpu.cfs_period_us", "100000\n");
  EXPECT(quota() == 1);
  write("/cpu/old/cpu.cfs_quota_us", "-1\n");
  EXPECT(quota() == 3);
  EXPECT(std::system(("rm -r " + base).c_str()) == 0);
}

void test_best_isa() {
  using Isas = std::vector<Isa>;
  const Isas zen5 = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
  const Isas xeon = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx};
  EXPECT(best_isa(zen5, false) == Isa::avx512_bf16);
  EXPECT(best_isa(zen5, true) == Isa::avx512);  // a Xeon whose AMX its virtual machine hides
  EXPECT(best_isa(xeon, true) == Isa::amx);
  EXPECT(best_isa({Isa::scalar}, true) == Isa::scalar);
}

void test_kernels(const Kernels& kernels) {
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8}) {
    test_linear(kernels, format);
    test_rows_do_not_depend_on_their_number(kernels, format);
  }
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16}) {
    test_attention(kernels, format);
    test_attention_beside_scalar(kernels, format);
  }
  test_layer_norm(kernels);
}

void test_all_kernels() {
  for (Isa isa : available_isas()) {
    std::printf("kernels: %s\n", isa_name(isa));
    EXPECT(kernels_for(isa).isa == isa);
    test_kernels(kernels_for(isa));
#if defined(GITFAST_EMULATED_AMX)
    if (isa == Isa::avx512_bf16 || isa == Isa::neon_bf16) {
      std::printf("kernels: amx, its registers emulated\n");
      test_kernels(kEmulatedAmxKernels);
    }
#endif
  }
}

void test_all() {
  test_best_isa();
  test_all_kernels();
  std::printf("thread pool\n");
  test_parts_cover_the_range_once();
  test_exceptions_come_back_after_every_part();
  test_a_region_inside_a_region_runs_in_place();
  test_many_callers();
  test_pools_come_and_go();
  test_fork();
  test_cgroup_quota();
  std::printf("running batch\n");
  test_policy_bounds_the_gap_between_tokens();
  test_spreading_over_lanes();
  test_crews();
  test_calls_of_many_threads({1, 2});
  std::printf("lanes\n");
  test_calls_of_many_threads({2, 1});
  test_calls_of_many_threads({3, 2});
  test_a_divided_call_ends_as_one();
}

}  // namespace
}  // namespace gitfast::cpu

// With an argument, the kernels alone: emulators of processors do not fork with threads.
int main(int argc, char**) {
  argc > 1 ? gitfast::cpu::test_all_kernels() : gitfast::cpu::test_all();
  std::printf("passed\n");
}
