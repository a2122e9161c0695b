// The instruction sets this machine can run, and the choice of one.
#include "isa.h"

#include <algorithm>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "tensor.h"

namespace gitfast::cpu {
namespace {

#if defined(__x86_64__)
// These builtins of GCC and clang read CPUID and, by XGETBV, which registers the operating system saves: a feature
// whose registers it does not save is reported as absent.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Products of VNNI in vectors of 256 bits: CPUs of desktops, many of which have no AVX-512. Of the older compilers not
// all know the name of the feature.
bool has_avx_vnni() {
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
}

// All CPUs with AVX-512 have it, but for the first (Skylake).
bool has_avx512_vnni() { return __builtin_cpu_supports("avx512vnni"); }

// All CPUs with the first have the second, but for one (Cooper Lake).
bool has_avx512_bf16() { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi"); }

// True if the CPU has bfloat16 tiles and Linux lets this process use them: their state is large, so a process must ask
// for permission, once, and threads made later have it too.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kTiles = 1u << 24, kBf16 = 1u << 22;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTiles) || !(d & kBf16)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
#if defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
#endif

// Every 64-bit ARM has NEON. Products of fours of int8 (FEAT_DotProd):
bool has_neon_dot() {
#if defined(__linux__)
  constexpr unsigned long kDot = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDot;
#elif defined(__APPLE__)
  return has_feature("hw.optional.arm.FEAT_DotProd");
#else
  return false;
#endif
}

// And of pairs of bfloat16 (FEAT_BF16), both also two rows by two columns at once (FEAT_I8MM for int8). All CPUs with
// these have the others.
bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kInt8Tiles = 1ul << 13, kBf16 = 1ul << 14;  // HWCAP2_I8MM, HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & (kInt8Tiles | kBf16)) == (kInt8Tiles | kBf16);
#elif defined(__APPLE__)
  return has_feature("hw.optional.arm.FEAT_BF16") && has_feature("hw.optional.arm.FEAT_I8MM");
#else
  return false;
#endif
}
#endif

bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

std::vector<Isa> detect() {
  std::vector<Isa> found{Isa::scalar};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_avx2()) found.push_back(Isa::avx2);
  if (has_avx2() && has_avx_vnni()) found.push_back(Isa::avx2_vnni);
  if (has_avx2() && has_avx512()) found.push_back(Isa::avx512);
  if (found.back() == Isa::avx512 && has_avx512_vnni()) found.push_back(Isa::avx512_vnni);
  if (found.back() == Isa::avx512_vnni && has_avx512_bf16()) {
    found.push_back(Isa::avx512_bf16);
    found.push_back(Isa::avx512_bf16_vnni);
    if (has_amx()) found.push_back(Isa::amx);
  }
#elif defined(__aarch64__)
  found.push_back(Isa::neon);
  if (has_neon_dot()) found.push_back(Isa::neon_dot);
  if (found.back() == Isa::neon_dot && has_neon_bf16()) found.push_back(Isa::neon_bf16);
#endif
  return found;
}

}  // namespace

const char* isa_name(Isa isa) {
  static constexpr const char* kNames[] = {"scalar",      "avx2",        "avx2_vnni",        "avx512",
                                           "avx512_vnni", "avx512_bf16", "avx512_bf16_vnni", "amx",
                                           "neon",        "neon_dot",    "neon_bf16"};
  return kNames[static_cast<int>(isa)];
}

std::vector<Isa> available_isas() {
  static const std::vector<Isa> found = detect();  // CPUID is slow in a virtual machine
  return found;
}

Isa best_isa(const std::vector<Isa>& available, bool intel) {
  if (available.back() != Isa::avx512_bf16_vnni) return available.back();
  if (intel) return Isa::avx512_vnni;
  const bool avx_vnni = std::find(available.begin(), available.end(), Isa::avx2_vnni) != available.end();
  return avx_vnni ? Isa::avx512_bf16 : Isa::avx512_bf16_vnni;
}

Isa choose_isa(const std::string& requested) {
  const char* variable = std::getenv("GITFAST_ISA");
  const std::string wanted = !requested.empty() ? requested : variable ? variable : "";
  const std::vector<Isa> found = available_isas();
  if (wanted.empty()) return best_isa(found, is_intel());
  std::string names;
  for (Isa isa : found) {
    if (wanted == isa_name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw Error((requested.empty() ? "GITFAST_ISA" : "isa") + std::string(": this machine runs ") + names + "; got '" +
              wanted + "'");
}

}  // namespace gitfast::cpu
