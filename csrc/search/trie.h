// The token sequences a constrained generation may produce, as a prefix tree.
//
// Every continuation ends in a leaf of its own under the end-of-sequence token, so one that begins another is told
// from it, the empty one is a leaf under the root, and duplicates share their leaf.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "search.h"

namespace gitfast::search {

class Trie {
 public:
  static constexpr int32_t kRoot = 0;
  static constexpr int32_t kNone = -1;
  using Children = std::vector<std::pair<int32_t, int32_t>>;  // (token, node), ascending by token

  // The tree of `options.allowed`, whose continuations may end in EOS, or not.
  explicit Trie(const SearchOptions& options);

  // No continuation at all, not even an empty one.
  bool empty() const { return nodes_.size() == 1; }
  // The node after `token`, or kNone.
  int32_t next(int32_t node, int32_t token) const;
  const Children& children(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

 private:
  int32_t add(int32_t node, int32_t token);

  std::vector<Children> nodes_;
};

}  // namespace gitfast::search
