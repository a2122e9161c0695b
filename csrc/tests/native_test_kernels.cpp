// The CPU kernels on arrays of their exact size, on every instruction set of this CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "tests/native_test.h"

namespace gitfast::cpu {

extern const Kernels kEmulatedAmxKernels;  // kernels_amx_emulated.cpp

namespace {

using Words = std::vector<uint32_t>;
constexpr uint32_t kNanWord = 0x7fc07fc0u;  // as a float32, and as two bfloat16
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

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
        scales(is_int8(format) ? static_cast<size_t>(n) : 0, kNan),
        y(static_cast<size_t>(m * n), kNan),
        panels(static_cast<size_t>(PackedLinear{n, k, format}.num_panels() * PackedLinear{n, k, format}.panel_words()),
               0),
        rounded(static_cast<size_t>((m + kRoundedPadding) * std::max(rounded_words(k), quantized_words(k))), kNanWord) {
    for (int64_t c = 0; c < n; ++c) w[static_cast<size_t>(c * k)] = 127;  // the scale of int8 is 1
    for (int64_t r = 0; r < m; ++r)
      for (int64_t i = 0; i < k; i += kSumBlock) x[static_cast<size_t>(r * k + i)] = 127;  // and the units of w8a8
    const int64_t half = n / 2;  // in two calls, as fused projections are packed
    pack_linear_rows(w.data(), false, half, k, 0, format, panels.data(), scales.data());
    pack_linear_rows(w.data() + half * k, false, n - half, k, half, format, panels.data(), scales.data());
  }

  PackedLinear packed() const {
    return {n, k, format, panels.data(), scales.empty() ? nullptr : scales.data(), bias.data()};
  }

  // y, or instead of it y rounded.
  void run(const Kernels& kernels, ThreadPool& pool, uint32_t* y_rounded = nullptr) {
    if (const Kernels::Rounding rounding = kernels.rounding(format, m)) rounding(x.data(), k, m, k, rounded.data());
    const PackedLinear weights = packed();
    const float* added = y_rounded ? nullptr : residual.data();
    const LinearArgs args{x.data(), k, rounded.data(), m, &weights, Activation::none, added, y.data(), n, y_rounded};
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
void test_rows_do_not_depend_on_their_number(const Kernels& kernels, WeightFormat format, int64_t terms) {
  constexpr int64_t kRows = 70, kColumns = 70;
  const auto with_fractions = [](Linear& linear) {
    for (size_t i = 0; i < linear.x.size(); ++i) linear.x[i] *= 1.0f / static_cast<float>(1 + i % 13);
  };
  ThreadPool pool(1);
  Linear all(kRows, kColumns, terms, format);
  with_fractions(all);
  all.run(kernels, pool);
  for (int64_t m : {1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 33, 64}) {
    Linear some(m, kColumns, terms, format);
    with_fractions(some);
    some.run(kernels, pool);
    EXPECT(std::equal(some.y.begin(), some.y.end(), all.y.begin()));
  }
}

// Values that are not finite make their row NaN, whatever their number, and no other row.
void test_rows_that_are_not_finite(const Kernels& kernels, WeightFormat format) {
  ThreadPool pool(1);
  constexpr int64_t kColumns = 40, kTerms = 300;
  for (int64_t m : {3, 40}) {
    Linear linear(m, kColumns, kTerms, format), finite(m, kColumns, kTerms, format);
    finite.run(kernels, pool);
    for (int64_t i : {3, 4, 130, 290}) linear.x[static_cast<size_t>(kTerms + i)] = i % 2 ? kNan : -kInfinity;
    linear.run(kernels, pool);
    for (size_t i = 0; i < linear.y.size(); ++i) {
      const bool spoilt = i / kColumns == 1;
      EXPECT(spoilt ? !std::isfinite(linear.y[i]) : linear.y[i] == finite.y[i]);
    }
  }
}

// What leaves a product rounded is what rounding its y gives, padding included; the rows after the last may hold
// anything.
void test_linear_that_leaves_rounded(const Kernels& kernels, WeightFormat format) {
  if (!kernels.leaves_rounded(format)) return;
  ThreadPool pool(2);
  for (int64_t m : {1, 12, 13, 16, 17, 32, 33, 40, 205})
    for (int64_t n : {1, 31, 32, 47, 100, 544}) {
      Linear linear(m, n, 60, format);
      for (size_t i = 0; i < linear.x.size(); ++i) linear.x[i] *= 1.0f / static_cast<float>(1 + i % 13);
      linear.residual.assign(linear.residual.size(), 0.0f);
      linear.run(kernels, pool);
      const auto words = static_cast<size_t>((m + kRoundedPadding) * rounded_words(n));
      Words expected(words, kNanWord), left(words, kNanWord);
      kernels.rounding(format, m)(linear.y.data(), n, m, n, expected.data());
      linear.run(kernels, pool, left.data());
      EXPECT(left == expected);
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
    kernels.layer_norm({x.data(), d, 3, d, gamma.data(), beta.data(), 1e-5f, y.data(), d});
    for (int64_t r = 0; r < 3; ++r) {
      const float sum = std::accumulate(y.begin() + r * d, y.begin() + (r + 1) * d, 0.0f);
      EXPECT(std::fabs(sum / static_cast<float>(d) - 2.0f) < 1e-5f);
    }
  }
}

#if defined(__aarch64__)
// Sums of int8 are exact: what sums them, and how many at once, changes no bit.
void test_int8_products_agree(const Kernels& kernels, const Kernels& others, WeightFormat format) {
  ThreadPool pool(1);
  for (int64_t m : {1, 2, 3, 4, 17, 103})
    for (int64_t k : {8, 60, 264, 513, 624}) {
      Linear linear(m, 70, k, format), other(m, 70, k, format);
      for (size_t i = 0; i < linear.x.size(); ++i) other.x[i] = linear.x[i] *= 1.0f / static_cast<float>(1 + i % 13);
      linear.run(kernels, pool);
      other.run(others, pool);
      EXPECT(linear.y == other.y);
    }
}
#endif

void test_best_isa() {
  using Isas = std::vector<Isa>;
  const Isas zen4 = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::avx512_bf16_vnni};
  const Isas zen5 = {Isa::scalar,      Isa::avx2,        Isa::avx2_vnni,       Isa::avx512,
                     Isa::avx512_vnni, Isa::avx512_bf16, Isa::avx512_bf16_vnni};
  Isas xeon = zen5;
  xeon.push_back(Isa::amx);
  EXPECT(best_isa(zen4, false) == Isa::avx512_bf16_vnni);
  EXPECT(best_isa(zen5, false) == Isa::avx512_bf16);
  EXPECT(best_isa(zen5, true) == Isa::avx512_vnni);  // a Xeon whose AMX its virtual machine hides
  EXPECT(best_isa(xeon, true) == Isa::amx);
  EXPECT(best_isa({Isa::scalar, Isa::avx2, Isa::avx2_vnni}, true) == Isa::avx2_vnni);
  EXPECT(best_isa({Isa::scalar}, true) == Isa::scalar);
}

void test_kernels(const Kernels& kernels) {
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::w8a8}) {
    test_linear(kernels, format);
    test_linear_that_leaves_rounded(kernels, format);
    test_rows_that_are_not_finite(kernels, format);
    for (int64_t terms : {621, 624}) test_rows_do_not_depend_on_their_number(kernels, format, terms);
  }
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16}) {
    test_attention(kernels, format);
    test_attention_beside_scalar(kernels, format);
  }
  test_layer_norm(kernels);
}

}  // namespace

void test_all_kernels() {
  test_best_isa();
  for (Isa isa : available_isas()) {
    std::printf("kernels: %s\n", isa_name(isa));
    EXPECT(kernels_for(isa).isa == isa);
    test_kernels(kernels_for(isa));
#if defined(__aarch64__)
    if (isa == Isa::neon_bf16)
      for (WeightFormat format : {WeightFormat::int8, WeightFormat::w8a8})
        test_int8_products_agree(kernels_for(isa), kernels_for(Isa::neon_dot), format);
#endif
#if defined(GITFAST_EMULATED_AMX)
    if (isa == Isa::avx512_bf16 || isa == Isa::neon_bf16) {
      std::printf("kernels: amx, its registers emulated\n");
      test_kernels(kEmulatedAmxKernels);
    }
#endif
  }
}

}  // namespace gitfast::cpu
