// The k largest of n values, equal ones chosen and ordered as torch.topk orders them on a CPU.
//
// torch.topk is no stable sort: among equal values neither the lowest nor the first index need win. Beam search picks
// by it, and logits of half precision tie often, so a search that is to agree with transformers must agree here. ATen
// calls std::partial_sort when 64 k <= n, and std::nth_element followed by std::sort otherwise, on pairs compared by
// value (aten/src/ATen/native/TopKImpl.h); so does this. A partial sort is a heap of k over which the rest streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gitfast::search {

class TopK {
 public:
  struct Entry {
    float value;
    int64_t index;
  };

  // Forgets the last run; `n` values will be added in all, k <= n.
  void start(int64_t k, int64_t n);
  // The next `count` values, indexed onwards from those before; none is NaN.
  void add(const float* values, int64_t count);
  // The k largest, in descending order. Valid until the next `start`.
  const std::vector<Entry>& finish();

  const std::vector<Entry>& of(const std::vector<float>& values, int64_t k);

 private:
  int64_t k_ = 0;
  int64_t added_ = 0;
  bool streams_ = false;
  std::vector<Entry> entries_;  // streaming: a heap whose top is the least of the best k, and one more as scratch
};

}  // namespace gitfast::search
