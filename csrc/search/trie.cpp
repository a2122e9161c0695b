#include "trie.h"

#include <algorithm>

namespace gitfast::search {
namespace {

bool before(const std::pair<int32_t, int32_t>& child, int32_t token) { return child.first < token; }

}  // namespace

Trie::Trie(const std::vector<std::vector<int32_t>>& sequences) : nodes_(1) {
  for (const std::vector<int32_t>& sequence : sequences) {
    int32_t node = kRoot;
    for (int32_t token : sequence) {
      int32_t child = next(node, token);
      if (child == kNone) {
        child = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        auto& children = nodes_[static_cast<size_t>(node)].children;
        children.insert(std::lower_bound(children.begin(), children.end(), token, before), {token, child});
      }
      node = child;
    }
    nodes_[static_cast<size_t>(node)].terminal = true;
  }
}

int32_t Trie::next(int32_t node, int32_t token) const {
  if (node == kNone) return kNone;
  const auto& children = at(node).children;
  const auto found = std::lower_bound(children.begin(), children.end(), token, before);
  return found != children.end() && found->first == token ? found->second : kNone;
}

}  // namespace gitfast::search
