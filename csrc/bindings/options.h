// Generation options (a dict of the fields of GenerationOptions) to the native SearchOptions, and results back.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "search/search.h"

namespace gitfast::bindings {

search::SearchOptions search_options(const pybind11::dict& fields);

// Per item a list of (token ids, log-probabilities, score, finish reason).
pybind11::list result_lists(const std::vector<std::vector<search::Result>>& results);

}  // namespace gitfast::bindings
