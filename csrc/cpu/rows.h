// The rows of one call: which image and which text each one is, and the slots that hold its text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "decoder.h"

namespace gitfast::cpu {

struct Row {
  const Prefix* prefix = nullptr;  // null: text only
  const std::vector<int32_t>* ids = nullptr;
  int32_t index = 0;  // the caller's row

  int64_t length() const { return static_cast<int64_t>(ids->size()); }
};

// Rows with the same prefix become neighbours, in the order of first appearance, so that they are attended together.
template <class PrefixPtr>
std::vector<Row> rows_by_prefix(const std::vector<PrefixPtr>& prefixes, const std::vector<std::vector<int32_t>>& ids) {
  std::map<const Prefix*, size_t> rank;
  std::vector<Row> rows(ids.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = {prefixes[i].get(), &ids[i], static_cast<int32_t>(i)};
    rank.emplace(rows[i].prefix, rank.size());
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const Row& a, const Row& b) { return rank[a.prefix] < rank[b.prefix]; });
  return rows;
}

// Per row the slots of its tokens, in order. Lists are copied when rows fork; the keys and values in the slots are not.
class SlotLists {
 public:
  SlotLists(int64_t max_rows, int64_t max_length)
      : stride_(max_length),
        slots_(static_cast<size_t>(max_rows * max_length)),
        next_slots_(slots_.size()),
        lengths_(static_cast<size_t>(max_rows)),
        next_lengths_(lengths_.size()) {}

  void clear() {
    num_rows_ = 0;
    num_slots_ = 0;
  }

  // Adds a row of `length` new slots.
  const int32_t* add(int64_t length) {
    int32_t* row = slots_.data() + num_rows_ * stride_;
    for (int64_t t = 0; t < length; ++t) row[t] = num_slots_++;
    lengths_[static_cast<size_t>(num_rows_++)] = static_cast<int32_t>(length);
    return row;
  }

  // Row r continues row parents[r], with one new slot.
  void advance(const std::vector<int32_t>& parents) {
    num_rows_ = static_cast<int64_t>(parents.size());
    for (size_t r = 0; r < parents.size(); ++r) {
      const auto parent = static_cast<size_t>(parents[r]);
      const int32_t length = lengths_[parent];
      int32_t* row = next_slots_.data() + static_cast<int64_t>(r) * stride_;
      std::copy_n(slots_.data() + static_cast<int64_t>(parent) * stride_, length, row);
      row[length] = num_slots_++;
      next_lengths_[r] = length + 1;
    }
    slots_.swap(next_slots_);
    lengths_.swap(next_lengths_);
  }

  const int32_t* row(size_t r) const { return slots_.data() + static_cast<int64_t>(r) * stride_; }
  int32_t length(size_t r) const { return lengths_[r]; }

 private:
  const int64_t stride_;
  std::vector<int32_t> slots_, next_slots_;  // (rows, max_length)
  std::vector<int32_t> lengths_, next_lengths_;
  int64_t num_rows_ = 0;
  int32_t num_slots_ = 0;
};

}  // namespace gitfast::cpu
