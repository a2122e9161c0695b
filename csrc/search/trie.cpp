// Allowed token sequences as a prefix tree.
#include "trie.h"

#include <algorithm>

namespace gitfast::search {
namespace {

bool before(const std::pair<int32_t, int32_t>& child, int32_t token) { return child.first < token; }

}  // namespace

Trie::Trie(const SearchOptions& options) : nodes_(1) {
  for (const Tokens& continuation : options.allowed) {
    int32_t node = kRoot;
    for (int32_t token : continuation)
      if (!options.ends(token)) node = add(node, token);
    add(node, options.eos.front());
  }
}

int32_t Trie::add(int32_t node, int32_t token) {
  const int32_t known = next(node, token);
  if (known != kNone) return known;
  const auto child = static_cast<int32_t>(nodes_.size());
  nodes_.emplace_back();
  Children& children = nodes_[static_cast<size_t>(node)];
  children.insert(std::lower_bound(children.begin(), children.end(), token, before), {token, child});
  return child;
}

int32_t Trie::next(int32_t node, int32_t token) const {
  const Children& children = nodes_[static_cast<size_t>(node)];
  const auto found = std::lower_bound(children.begin(), children.end(), token, before);
  return found != children.end() && found->first == token ? found->second : kNone;
}

}  // namespace gitfast::search
