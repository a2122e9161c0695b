// State shared by all searches of one call: their options, checked, and the processors made of them.
#pragma once

#include "options.h"
#include "processors.h"
#include "search.h"

namespace gitfast::search {

struct Rules {
  Rules(const SearchOptions& o, int32_t vocab)
      : options(checked(o, vocab)), vocab_size(vocab), processors(options, vocab) {}
  Rules(const Rules&) = delete;  // the processors refer to the options
  Rules& operator=(const Rules&) = delete;

  const SearchOptions options;
  const int32_t vocab_size;
  const Processors processors;

 private:
  static const SearchOptions& checked(const SearchOptions& o, int32_t vocab) {
    check(o, vocab);
    return o;
  }
};

}  // namespace gitfast::search
