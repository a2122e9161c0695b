// The instruction sets that this machine can run, and the one that the kernels use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gitfast::cpu {

enum class Isa : uint8_t {
  scalar,
  avx2,
  avx2_vnni,
  avx512,
  avx512_vnni,
  avx512_bf16,
  avx512_bf16_vnni,  // the same instructions; int8 is multiplied as int16, not as bfloat16
  amx,
  neon,
  neon_dot,
  neon_bf16
};

const char* isa_name(Isa isa);

// Ascending; always starts with scalar. Includes the check that the operating system saves the registers.
std::vector<Isa> available_isas();

// The last of those available, with two exceptions. Intel's CPUs multiply pairs of bfloat16 slowly in vectors (encoding
// takes 307 ms with them on a Granite Rapids, and 247 in float32): those whose AMX cannot be used multiply float32 and,
// for weights of int8, int16. And AMD's multiply pairs of int16 as fast as those of bfloat16 on Zen 4 alone; Zen 5,
// which has AVX-VNNI too, makes bfloat16 of int8.
Isa best_isa(const std::vector<Isa>& available, bool intel);

// `requested`: a name, or "" for the GITFAST_ISA environment variable, or failing that the best available.
// Throws Error naming what came and what this machine has.
Isa choose_isa(const std::string& requested);

}  // namespace gitfast::cpu
