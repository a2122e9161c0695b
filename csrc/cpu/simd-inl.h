// Vectors of float32 for the instruction set this file is compiled under, and the functions the kernels need on them.
// Included by kernels_<isa>.cpp only; everything is in an anonymous namespace and nothing of the standard library is
// instantiated, because a symbol compiled for AVX-512 must never be picked by the linker to serve an older CPU.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(GITFAST_NEON)
#include <arm_neon.h>
#endif

// GITFAST_BF16_PRODUCTS: pairs of bfloat16 are multiplied as such. GITFAST_INT8_PRODUCTS: weights of int8 are
// multiplied as whole numbers, their products added in an int32: fours of int8 on ARM, pairs of int16 on x86 where no
// bfloat16 takes as many, or where the build asks for it. GITFAST_BYTE_PRODUCTS: weights of w8a8 are multiplied by
// fours of int8. GITFAST_PAIRED_PRODUCTS: products of bfloat16 and int8 by two rows and two columns at once. Where a
// compiler takes an ARM CPU that has them for granted, as for macOS, the scalar kernels do without.
#if defined(__AVX512BF16__)
#define GITFAST_BF16_PRODUCTS
#elif defined(__AVX2__)
#define GITFAST_INT8_PRODUCTS
#elif defined(GITFAST_NEON)
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define GITFAST_BF16_PRODUCTS
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define GITFAST_INT8_PRODUCTS
#define GITFAST_BYTE_PRODUCTS
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)
#define GITFAST_PAIRED_PRODUCTS
#endif
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define GITFAST_BYTE_PRODUCTS
#endif

namespace gitfast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecInts __attribute__((vector_size(kLanes * 4)));

inline Vec splat(float x) { return x - Vec{}; }

// a * b + c, fused where the instruction set can.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(GITFAST_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// The factors of a product are float32, or pairs of bfloat16 (the first in the low half) whose products are both added.
enum Bf16Pair : uint32_t {};

inline Vec multiply_add(float a, Vec b, Vec sum) { return fma(splat(a), b, sum); }
#if defined(__AVX512BF16__)
inline Vec multiply_add(Bf16Pair a, Vec b, Vec sum) {
  __m512i factor = _mm512_set1_epi32(static_cast<int>(a));
#if defined(__clang__) && (__clang_major__ == 16 || __clang_major__ == 17)
  asm("" : "+v"(factor));  // these compilers end in a fault over vectors of bfloat16 broadcast from memory
#endif
  return _mm512_dpbf16_ps(sum, (__m512bh)factor, (__m512bh)b);
}
#elif defined(GITFAST_BF16_PRODUCTS)
inline Vec multiply_add(Bf16Pair a, Vec b, Vec sum) {
  return vbfdotq_f32(sum, vreinterpretq_bf16_u32(vdupq_n_u32(a)), vreinterpretq_bf16_f32(b));
}
#endif

// Four int8, or two int16. Their sums are int32 in the lanes of a Vec, and begin with its zeros.
#if defined(GITFAST_BYTE_PRODUCTS)
enum Int8Quad : uint32_t {};

#if defined(GITFAST_NEON)
inline Vec multiply_add(Int8Quad a, Vec b, Vec sum) {
  const int8x16_t factor = vreinterpretq_s8_u32(vdupq_n_u32(a));
  return vreinterpretq_f32_s32(vdotq_s32(vreinterpretq_s32_f32(sum), vreinterpretq_s8_f32(b), factor));
}
#else
// vpdpbusd reads the bytes of b without a sign: Int8Quads adds 128 to each.
inline Vec multiply_add(Int8Quad a, Vec b, Vec sum) {
#if defined(__AVX512F__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(_mm512_set1_epi32(static_cast<int>(a))));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(b), "x"(_mm256_set1_epi32(static_cast<int>(a))));
#endif
  return sum;
}
#endif
#endif

#if defined(GITFAST_INT8_PRODUCTS) && !defined(GITFAST_NEON)
enum Int16Pair : uint32_t {};

// Sums are added in assembly, whose order GCC keeps: it otherwise multiplies for all rows of a tile first, or copies
// their sums, and its registers do not suffice.
inline Vec multiply_add(Int16Pair a, Vec b, Vec sum) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(_mm512_set1_epi32(static_cast<int>(a))), "v"(b));
  return sum;
#elif defined(__AVX512F__)
  const __m512i products = _mm512_madd_epi16(_mm512_set1_epi32(static_cast<int>(a)), (__m512i)b);
  asm volatile("vpaddd %1, %0, %0" : "+v"(sum) : "v"(products));
  return sum;
#elif defined(__AVXVNNI__)
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(_mm256_set1_epi32(static_cast<int>(a))), "x"(b));
  return sum;
#else
  const __m256i products = _mm256_madd_epi16(_mm256_set1_epi32(static_cast<int>(a)), (__m256i)b);
  asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
  return sum;
#endif
}
#endif

// The bfloat16 nearest to x, ties to even, in the high half; NaN stays NaN.
inline VecBits bf16_bits(Vec x) {
  const VecBits bits = (VecBits)x;
  const VecBits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return x != x ? bits | 0x400000u : rounded;
}
inline VecBits bf16_pair(Vec first, Vec second) { return bf16_bits(first) >> 16 | (bf16_bits(second) & 0xffff0000u); }

// Both return `b` where `a` is NaN, as the x86 instructions do with their operands in this order.
inline Vec max(Vec b, Vec a) { return a > b ? a : b; }
inline Vec min(Vec b, Vec a) { return a < b ? a : b; }
inline Vec abs(Vec x) { return (Vec)((VecBits)x & 0x7fffffffu); }

// exp(x) for x <= 0 within 1.2 ulp; 0 below -87.3, where the result would leave the normal range. NaN stays NaN.
inline Vec exp_nonpositive(Vec x) {
  const Vec shift = splat(0x1.8p23f);  // adding it rounds to an integer, kept in the low bits
  const Vec shifted = fma(x, splat(1.44269504f), shift);
  const Vec n = shifted - shift;
  Vec r = fma(n, splat(-0.693359375f), x);  // x - n ln 2 in two parts: |r| <= ln 2 / 2
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(0.00138145394f);  // minimax fit of (e^r - 1 - r) / r^2
  p = fma(p, r, splat(0.00836874545f));
  p = fma(p, r, splat(0.041668389f));
  p = fma(p, r, splat(0.166665211f));
  p = fma(p, r, splat(0.49999994f));
  p = fma(p, r * r, r) + 1.0f;
  const Vec scaled = (Vec)((VecBits)p + ((VecBits)shifted << 23));  // of a NaN with bits of its own, any number
  return x < splat(-87.3f) ? Vec{} : fma(r, Vec{}, scaled);
}

inline Vec sigmoid(Vec x) {
  const Vec e = exp_nonpositive(-abs(x));
  return (x < Vec{} ? e : splat(1.0f)) / (e + 1.0f);
}

// The standard normal distribution function, whose product with x is GELU. Below |x| = 1.25 an odd polynomial around
// 1/2; beyond, exp(-x^2/2) times a polynomial in 1 / (1 + 0.4 |x|), so that the tail keeps its relative precision.
inline Vec normal_cdf(Vec x) {
  const Vec t = min(abs(x), splat(14.0f));
  const Vec s = t * t;
  Vec near = splat(-6.64525214e-06f);
  near = fma(near, s, splat(0.000110329245f));
  near = fma(near, s, splat(-0.00118271261f));
  near = fma(near, s, splat(0.00997150317f));
  near = fma(near, s, splat(-0.0664899871f));
  near = fma(near, s, splat(0.398942262f));
  near = fma(near, x, splat(0.5f));

  const Vec u = 1.0f / fma(t, splat(0.4f), splat(1.0f));
  Vec tail = splat(0.0692487732f);
  tail = fma(tail, u, splat(-0.18925257f));
  tail = fma(tail, u, splat(0.108203202f));
  tail = fma(tail, u, splat(0.0540794358f));
  tail = fma(tail, u, splat(0.139406368f));
  tail = fma(tail, u, splat(0.159043252f));
  tail = fma(tail, u, splat(0.159598932f));
  tail = tail * u * exp_nonpositive(s * -0.5f);
  const Vec far = x < Vec{} ? tail : 1.0f - tail;
  return t < splat(1.25f) ? near : far;
}

// Sixteen floats: one, two or four vectors. Every kernel works on these, so that sums over lanes have the same order
// whatever the instruction set.
constexpr int kWidth = 16;
constexpr int kParts = kWidth / kLanes;

struct F32x16 {
  Vec part[kParts];
};

template <class T>
inline Vec load_vec(const T* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

template <class T>
inline void store_vec(T* p, Vec x) {
  __builtin_memcpy(p, &x, sizeof x);
}

// {f(0), f(1), ...} over the parts, without a loop: the compiler then keeps every part in a register.
template <class Function, int... I>
inline F32x16 each_part(Function f, std::integer_sequence<int, I...>) {
  return {{f(I)...}};
}
template <class Function>
inline F32x16 each_part(Function f) {
  return each_part(f, std::make_integer_sequence<int, kParts>{});
}

inline F32x16 load(const float* p) {
  return each_part([p](int i) { return load_vec(p + i * kLanes); });
}
inline void store(float* p, const F32x16& x) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) store_vec(p + i * kLanes, x.part[i]);
}

// The first n of 16 floats, the rest `fill`; reads nothing beyond them.
inline F32x16 load_part(const float* p, int64_t n, float fill = 0.0f) {
#if defined(__AVX512F__)
  return {_mm512_mask_loadu_ps(splat(fill), static_cast<__mmask16>((1u << n) - 1), p)};
#else
  float lanes[kWidth];
  for (int i = 0; i < kWidth; ++i) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
#endif
}

inline void store_part(float* p, const F32x16& x, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x.part[0]);
#else
  float lanes[kWidth];
  store(lanes, x);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

inline F32x16 splat16(float x) {
  return each_part([x](int) { return splat(x); });
}
inline F32x16 operator+(const F32x16& a, const F32x16& b) {
  return each_part([&](int i) { return a.part[i] + b.part[i]; });
}
inline F32x16 operator-(const F32x16& a, const F32x16& b) {
  return each_part([&](int i) { return a.part[i] - b.part[i]; });
}
inline F32x16 operator*(const F32x16& a, const F32x16& b) {
  return each_part([&](int i) { return a.part[i] * b.part[i]; });
}
inline F32x16 operator/(const F32x16& a, const F32x16& b) {
  return each_part([&](int i) { return a.part[i] / b.part[i]; });
}
inline F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  return each_part([&](int i) { return fma(a.part[i], b.part[i], c.part[i]); });
}
inline F32x16 max(const F32x16& b, const F32x16& a) {
  return each_part([&](int i) { return max(b.part[i], a.part[i]); });
}
inline F32x16 map(const F32x16& x, Vec (*function)(Vec)) {
  return each_part([&](int i) { return function(x.part[i]); });
}

// Lanes i and i + 8, then i and i + 4, and so on.
inline float sum_lanes(const F32x16& x) {
  float lanes[kWidth];
  store(lanes, x);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float max_lanes(const F32x16& x) {
  float lanes[kWidth];
  store(lanes, x);
  float top = lanes[0];
  for (int i = 1; i < kWidth; ++i) top = lanes[i] > top ? lanes[i] : top;
  return top;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace gitfast::cpu
