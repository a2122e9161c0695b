// The search on the device: kernels that start it and advance it by a step.
#include "cuda/ptx.h"
#include "cuda/search.cuh"
#include "tensor.h"

namespace gitfast::cuda {
namespace {

// One warp per slot.
__global__ void start_search_kernel(SearchState state) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  start_slot(state, static_cast<int>(blockIdx.x));
}

__global__ void advance_search_kernel(SearchState state, Choices choices) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  advance_slot(state, choices, static_cast<int>(blockIdx.x));
}

void check(const SearchState& s) {
  const auto require = [](bool ok, const char* name, const std::string& expected, int64_t got) {
    if (!ok) throw Error(std::string(name) + ": expected " + expected + ", got " + std::to_string(got));
  };
  require(s.rows_per_slot >= 1 && s.rows_per_slot <= kMaxBeams, "rows_per_slot", "1 to " + std::to_string(kMaxBeams),
          s.rows_per_slot);
  require(s.sequences_per_prompt == 1 || (s.sequences_per_prompt > 1 && s.rows_per_slot == 1), "sequences_per_prompt",
          s.rows_per_slot > 1 ? "1, with beams" : "at least 1", s.sequences_per_prompt);
  require(s.sequences >= s.slots && s.sequences % s.sequences_per_prompt == 0, "ended",
          "at least " + std::to_string(s.slots) + " sequences, of whole prompts", s.sequences);
  require(s.sequences * s.rows_per_slot * s.max_text <= INT32_MAX, "kv_index", "no more than 2^31 - 1 kv_index",
          s.sequences * s.rows_per_slot * s.max_text);
}

}  // namespace

void start_search(const SearchCall& call, CUstream_st* stream) {
  check(call.state);
  if (call.state.slots == 0) return;
  const DeviceScope device(call.device);
  const dim3 grid(static_cast<unsigned>(call.state.slots)), block(kWarpSize);
  launch_kernel({"start_search_kernel", grid, block, 0, stream, call.overlap}, start_search_kernel, call.state);
}

void advance_search(const SearchCall& call, CUstream_st* stream) {
  check(call.state);
  if (call.choices.count < 1 || call.choices.count > kMaxChoices)
    throw Error("tokens: expected 1 to " + std::to_string(kMaxChoices) + " choices per row, got " +
                std::to_string(call.choices.count));
  if (call.state.slots == 0) return;
  const DeviceScope device(call.device);
  const dim3 grid(static_cast<unsigned>(call.state.slots)), block(kWarpSize);
  launch_kernel({"advance_search_kernel", grid, block, 0, stream, call.overlap}, advance_search_kernel, call.state,
                call.choices);
}

}  // namespace gitfast::cuda
