// The token sequences a constrained generation may produce, as a prefix tree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace gitfast::search {

class Trie {
 public:
  static constexpr int32_t kRoot = 0;
  static constexpr int32_t kNone = -1;

  Trie() : nodes_(1) {}
  explicit Trie(const std::vector<std::vector<int32_t>>& sequences);

  bool empty() const { return nodes_.size() == 1 && !nodes_[0].terminal; }
  // The node after `token`, or kNone.
  int32_t next(int32_t node, int32_t token) const;
  // (token, node), ascending by token.
  const std::vector<std::pair<int32_t, int32_t>>& children(int32_t node) const { return at(node).children; }
  // A sequence ends here: the end-of-sequence token may follow.
  bool terminal(int32_t node) const { return at(node).terminal; }

 private:
  struct Node {
    std::vector<std::pair<int32_t, int32_t>> children;
    bool terminal = false;
  };
  const Node& at(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

  std::vector<Node> nodes_;
};

}  // namespace gitfast::search
