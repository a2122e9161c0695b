// Whole sequences in one kernel, on a device, against greedy search in float64.
#pragma once

#include "cuda/persistent.h"
#include "tests/cuda_test_decoder.cuh"
#include "tests/cuda_test_search.cuh"

namespace gitfast::cuda {

struct GreedySequence {
  Tokens tokens;
  std::vector<double> log_probs;
  double margin = INFINITY;  // the least by which a token was better than the next best
};

// The sequence behind a prompt whose earlier tokens' keys and values are stored in the first of the row's entries.
template <class T, class W>
GreedySequence greedy_sequence(RandomDecoder<T, W>& decoder, int row, const Tokens& prompt, int max_text, int limit,
                               int32_t eos) {
  const auto length = static_cast<int32_t>(prompt.size());
  StepRows step{max_text, {prompt.back()}, {length - 1}, {row % kImages}, Tokens(max_text), {length}};
  std::iota(step.kv_index.begin(), step.kv_index.end(), row * max_text);
  GreedySequence sequence;
  while (static_cast<int>(sequence.tokens.size()) < limit) {
    std::vector<double> logits = decoder.head(decoder(step));
    const auto best = std::max_element(logits.begin(), logits.end());
    const double top = *best;
    double total = 0;
    for (const double logit : logits) total += std::exp(logit - top);
    sequence.tokens.push_back(static_cast<int32_t>(best - logits.begin()));
    sequence.log_probs.push_back(-std::log(total));
    *best = -INFINITY;
    sequence.margin = std::min(sequence.margin, top - *std::max_element(logits.begin(), logits.end()));
    if (sequence.tokens.back() == eos) break;
    step.ids[0] = sequence.tokens.back();
    ++step.positions[0], ++step.text_len[0];
  }
  return sequence;
}

// The end of sequence is what the first row says third: it ends before the others. Alone, it ends the search.
template <class T, class W>
struct PersistentCase {
  static constexpr int kLimit = 6, kMaxSteps = 8, kFirstSteps = 3;
  static constexpr double kTolerance = 2 * kUnit<T>;  // of logits, which are sums of 128 products of rounded numbers

  PersistentCase(const std::vector<Tokens>& prompts, unsigned seed)
      : prompts(prompts),
        rows(static_cast<int>(prompts.size())),
        max_text(longest(prompts) + kMaxSteps),
        decoder(rows * max_text, seed),
        eos(greedy_sequence(decoder, 0, prompts[0], max_text, kFirstSteps, -1).tokens.back()),
        search(prompts, rows, 1, kLimit, kMaxSteps, eos, kImages),
        tokens(Tokens(rows, -9)),
        token_stream(Tokens(1 + kMaxSteps * rows, 0)),
        log_probs(std::vector<float>(rows, NAN)),
        partials(std::vector<float>(decode_workspace(rows, kHeads, kWidth), NAN)),
        barrier({0, 0}) {}

  // Without a workspace.
  PersistentDecode on_device(int cluster) const {
    PersistentDecode args;
    args.search = search.state();
    args.decode = decoder.on_device(cluster);
    args.decode.rows = rows;
    args.decode.max_text = max_text;
    args.decode.ids = args.search.ids;
    args.decode.position_ids = args.search.positions;
    args.decode.image = args.search.image;
    args.decode.kv_index = args.search.kv_index;
    args.decode.text_len = args.search.text_len;
    args.decode.partials = partials.data();
    args.tokens = tokens.data();
    args.log_probs = log_probs.data();
    args.head = decoder.head.on_device();
    args.head_bias = decoder.head.bias.device.data();
    args.barrier = barrier.data();
    args.token_stream = token_stream.data();
    return args;
  }

  // The error of all sequences, after a run.
  double error() {
    const Tokens found = search.tokens.host(), heard = token_stream.host(), ended = search.ended.host();
    const std::vector<float> found_log_probs = search.log_probs.host();
    double worst = barrier.host()[1] == 0 ? 0 : INFINITY;
    int steps = 0;
    for (int r = 0; r < rows; ++r) {
      const GreedySequence sequence = greedy_sequence(decoder, r, prompts[r], max_text, kLimit, eos);
      const auto length = static_cast<int>(sequence.tokens.size());
      if (sequence.margin < 2 * kTolerance) worst = INFINITY;  // a right kernel could choose otherwise
      if (r == 0 && length != kFirstSteps) worst = INFINITY;
      if (ended[r] != static_cast<int32_t>(Ended::yes)) worst = INFINITY;
      if (found[length * rows + r] != -9) worst = INFINITY;  // it went on
      for (int i = 0; i < length; ++i) {
        const int at = i * rows + r;
        if (found[at] != sequence.tokens[i] || heard[1 + at] != sequence.tokens[i]) worst = INFINITY;
        worst = worse(worst, std::fabs(found_log_probs[at] - sequence.log_probs[i]) / kTolerance);
      }
      steps = std::max(steps, length);
    }
    if (steps != (rows > 1 ? kLimit : kFirstSteps) || heard[0] != steps) worst = INFINITY;
    return worst;
  }

  const std::vector<Tokens> prompts;
  const int rows, max_text;
  RandomDecoder<T, W> decoder;
  const int32_t eos;
  const SearchMemory search;
  const DeviceArray<int32_t> tokens, token_stream;
  const DeviceArray<float> log_probs, partials;
  const DeviceArray<uint32_t> barrier;
};

template <class T, class W>
bool test_greedy(const std::vector<Tokens>& prompts, int cluster, unsigned seed) {
  PersistentCase<T, W> sequences(prompts, seed);
  PersistentDecode args = sequences.on_device(cluster);
  const DeviceArray<uint8_t> workspace(std::vector<uint8_t>(persistent_workspace(args), 0xff));
  args.workspace = workspace.data();
  if (!fits_persistent_decode(args)) return skipped("persistent_decode");
  SearchCall call;
  call.state = args.search;
  start_search(call, nullptr);
  persistent_decode(args, nullptr);
  return report("persistent_decode", kDType<W>, sequences.rows, cluster, sequences.kLimit, sequences.error());
}

inline bool test_persistent() {
  bool right = true;
  const std::vector<Tokens> one{{5}}, three{{5}, {7, 9, 3}, {4, 8}};
  for (const auto& prompts : {one, three}) {
    right &= test_greedy<__half, __half>(prompts, 2, 1);
    right &= test_greedy<__nv_bfloat16, __nv_bfloat16>(prompts, 4, 1);
    right &= test_greedy<__nv_bfloat16, int8_t>(prompts, 2, 2);
  }
  return right;
}

}  // namespace gitfast::cuda
