// Steps of the decoder in clusters of blocks, on a device, against float64.
#pragma once

#include "tests/cuda_test_decoder.cuh"

namespace gitfast::cuda {

// Row r has image r % 2 and 1 + 2 r tokens of text, in slots of its own from behind.
inline StepRows step_rows(int rows, int max_text) {
  StepRows step;
  step.max_text = max_text;
  for (int r = 0; r < rows; ++r) {
    const int length = 1 + 2 * r;
    step.ids.push_back(17 * r + 3);
    step.positions.push_back(length - 1);
    step.image.push_back(r % kImages);
    step.text_len.push_back(length);
    for (int i = 0; i < max_text; ++i) step.slots.push_back((rows - r) * max_text - 1 - i);
  }
  return step;
}

template <class T, class W>
bool test_decode_step(int rows, int cluster) {
  if (!can_decode(0, kWidth, kInner, kHeads, cluster)) return skipped("decode_step");
  const int max_text = 2 * rows;
  RandomDecoder<T, W> decoder(rows * max_text, 1);
  const StepRows step = step_rows(rows, max_text);
  const DeviceArray<int32_t> ids(step.ids), positions(step.positions), image(step.image), slots(step.slots);
  const DeviceArray<int32_t> text_len(step.text_len);
  const DeviceArray<float> partials(std::vector<float>(decode_workspace(rows, kHeads, kWidth), NAN));
  const DeviceArray<T> hidden(std::vector<T>(size_t{1} * rows * kWidth, T(NAN)));
  Decode args = decoder.on_device(cluster);
  args.rows = rows;
  args.max_text = max_text;
  args.ids = ids.data();
  args.position_ids = positions.data();
  args.image = image.data();
  args.slots = slots.data();
  args.text_len = text_len.data();
  args.partials = partials.data();
  decode_step(args, hidden.data(), nullptr);
  double worst = distance(hidden.host(), decoder(step));
  for (const auto& layer : decoder.layers)
    for (const auto* stored : {&layer.keys, &layer.values})
      worst = worse(worst, distance(stored->text.host(), stored->text_truth));
  return report("decode_step", kDType<W>, rows, cluster, kPrefix, worst);
}

inline bool test_decode() {
  bool right = true;
  for (const int cluster : {2, 4}) {
    right &= test_decode_step<__half, __half>(3, cluster);
    right &= test_decode_step<__nv_bfloat16, __nv_bfloat16>(3, cluster);
    right &= test_decode_step<__nv_bfloat16, int8_t>(3, cluster);
  }
  return right;
}

}  // namespace gitfast::cuda
