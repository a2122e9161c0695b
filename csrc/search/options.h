// Checks of search options.
#pragma once

#include "search.h"

namespace gitfast::search {

// Throws Error naming the first option that cannot be.
void check(const SearchOptions& options, int32_t vocab_size);

// Throws Error naming the first prompt that cannot be.
void check_prompts(const std::vector<Tokens>& prompts, int32_t vocab_size);

}  // namespace gitfast::search
