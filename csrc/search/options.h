// Which search options can be.
#pragma once

#include "search.h"

namespace gitfast::search {

// Throws Error naming the first option, or prompt, that cannot be.
void check(const SearchOptions& options, const std::vector<Tokens>& prompts, int32_t vocab_size);

}  // namespace gitfast::search
