// Vectors of float for the instruction set this file is compiled under. Included by the kernel sources only, inside
// their anonymous namespace: nothing here may leave its translation unit.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // the x86-64 baseline; other architectures have four lanes too
#endif

typedef float VF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VI __attribute__((vector_size(kLanes * 4)));

inline VF load(const float* p) {
  VF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, VF v) { __builtin_memcpy(p, &v, sizeof v); }

inline VF splat(float x) { return x - VF{}; }

// a * b + c: fused where the instruction set has it.
inline VF fma(VF a, VF b, VF c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline float fma(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline VF max(VF a, VF b) { return a > b ? a : b; }
inline VF min(VF a, VF b) { return a < b ? a : b; }

// Horizontal reductions in a fixed, lane-halving order.
inline float sum_lanes(VF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float max_lanes(VF v) {
  float lanes[kLanes];
  store(lanes, v);
  float m = lanes[0];
  for (int i = 1; i < kLanes; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

// The first n lanes from memory, the rest `fill`; never reads past p[n - 1].
inline VF load_part(const float* p, int64_t n, float fill) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}

inline void store_part(float* p, VF v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// exp(x), about 1 ulp; 0 below -87.3 (no denormals), NaN stays NaN. Cephes range reduction: x = n ln 2 + r, |r| <= ln 2
// / 2.
inline VF exp(VF x) {
  const VF clamped = min(max(x, splat(-87.3f)), splat(88.3f));
  const VF shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const VF n = fma(clamped, splat(1.44269504f), shift) - shift;
  VF r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  VF p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.f);
  const VI exponent = (__builtin_convertvector(n, VI) + 127) << 23;
  VF scale;
  __builtin_memcpy(&scale, &exponent, sizeof scale);
  const VF y = x < splat(-87.3f) ? VF{} : p * scale;
  return x == x ? y : x;
}

// erf(x), about 1 ulp: a polynomial near zero, 1 - exp(polynomial) beyond (after N. Juffa's minimax fits).
inline VF erf(VF x) {
  const VF t = x < VF{} ? -x : x;
  const VF s = x * x;
  VF r = fma(splat(-1.72853470e-5f), t, splat(3.83197126e-4f));
  const VF u = fma(splat(-3.88396438e-3f), t, splat(2.42546219e-2f));
  r = fma(r, s, u);
  r = fma(r, t, splat(-1.06777877e-1f));
  r = fma(r, t, splat(-6.34846687e-1f));
  r = fma(r, t, splat(-1.28717512e-1f));
  r = fma(r, t, -t);
  const VF far = splat(1.f) - exp(r);
  VF q = splat(-5.96761703e-4f);
  q = fma(q, s, splat(4.99119423e-3f));
  q = fma(q, s, splat(-2.67681349e-2f));
  q = fma(q, s, splat(1.12819925e-1f));
  q = fma(q, s, splat(-3.76125336e-1f));
  q = fma(q, s, splat(1.28379166e-1f));
  const VF near = fma(q, x, x);
  return t > splat(0.921875f) ? (x < VF{} ? -far : far) : near;
}
