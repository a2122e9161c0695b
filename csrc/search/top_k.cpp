// The k largest values, in the order of torch.topk.
#include "top_k.h"

#include <algorithm>

#include "logits.h"

namespace gitfast::search {
namespace {

bool greater(const TopK::Entry& a, const TopK::Entry& b) { return a.value > b.value; }

}  // namespace

void TopK::start(int64_t k, int64_t n) {
  k_ = k;
  added_ = 0;
  streams_ = k * 64 <= n;
  entries_.clear();
  entries_.reserve(static_cast<size_t>(streams_ ? k + 1 : n));
}

void TopK::add(const float* values, int64_t count) {
  int64_t i = 0;
  while (i < count && (!streams_ || added_ < k_)) {
    entries_.push_back({values[i++], added_++});
    if (streams_ && added_ == k_) {
      std::make_heap(entries_.begin(), entries_.end(), greater);
      entries_.emplace_back();
    }
  }
  const int64_t first = added_ - i;  // index of values[0]
  added_ = first + count;
  constexpr int64_t kBlock = 64;  // most blocks hold nothing large enough
  for (; i < count; i += kBlock) {
    const int64_t stop = std::min(i + kBlock, count);
    if (!(largest(values + i, stop - i) > entries_[0].value)) continue;
    for (int64_t j = i; j < stop; ++j) {
      if (!(values[j] > entries_[0].value)) continue;
      entries_.back() = {values[j], first + j};
      std::pop_heap(entries_.begin(), entries_.end(), greater);  // the least of the k gives way
    }
  }
}

const std::vector<TopK::Entry>& TopK::finish() {
  const auto kth = entries_.begin() + k_;
  if (streams_) {
    std::sort_heap(entries_.begin(), kth, greater);
  } else {
    std::nth_element(entries_.begin(), kth - 1, entries_.end(), greater);
    std::sort(entries_.begin(), kth - 1, greater);
  }
  entries_.resize(static_cast<size_t>(k_));
  return entries_;
}

const std::vector<TopK::Entry>& TopK::of(const std::vector<float>& values, int64_t k) {
  start(k, static_cast<int64_t>(values.size()));
  add(values.data(), static_cast<int64_t>(values.size()));
  return finish();
}

}  // namespace gitfast::search
