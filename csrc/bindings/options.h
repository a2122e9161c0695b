// Token ids and generation options (a dict of the fields of GenerationOptions) in, results out.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "search/search.h"

namespace gitfast::bindings {

// Sequences of token ids; TypeError or Error name `name`, and the index of the sequence that cannot be.
std::vector<search::Tokens> token_lists(const pybind11::handle& value, const std::string& name);
search::Tokens token_list(const pybind11::handle& value, const std::string& name);

search::SearchOptions search_options(const pybind11::dict& fields);

// Per item a list of (token ids, log-probabilities, score, finish reason).
pybind11::list result_lists(const std::vector<std::vector<search::Result>>& results);

}  // namespace gitfast::bindings
