#include "isa.h"

#include <cstdlib>

#include "tensor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gitfast::cpu {
namespace {

#if defined(__x86_64__)
// Register state the operating system saves on a context switch (XCR0): without it the instructions fault.
uint64_t saved_state() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

bool has_avx2() {
  constexpr uint64_t kYmm = 0x6;
  return (saved_state() & kYmm) == kYmm && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  constexpr uint64_t kZmm = 0xe6;
  return (saved_state() & kZmm) == kZmm && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  static constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};
  return kNames[static_cast<int>(isa)];
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found{Isa::scalar};
#if defined(__x86_64__)
  if (has_avx2()) found.push_back(Isa::avx2);
  if (has_avx2() && has_avx512()) found.push_back(Isa::avx512);
#endif
  return found;
}

Isa choose_isa(const std::string& requested) {
  const char* variable = std::getenv("GITFAST_ISA");
  const std::string wanted = !requested.empty() ? requested : variable ? variable : "";
  const std::vector<Isa> found = available_isas();
  if (wanted.empty() || wanted == "auto") return found.back();
  std::string names;
  for (Isa isa : found) {
    if (wanted == isa_name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw Error((requested.empty() ? "GITFAST_ISA" : "isa") + std::string(": this machine runs ") + names + "; got '" +
              wanted + "'");
}

}  // namespace gitfast::cpu
