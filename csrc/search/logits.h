// Arithmetic over one row of logits (V): the parts of search that touch every value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gitfast::search {

// log(sum(exp(x))). Throws Error when x holds NaN or +inf, or nothing but -inf; `row` goes into the message.
float log_sum_exp(const float* x, int64_t n, int64_t row);

// The first of the largest values, as torch.argmax.
int32_t argmax(const float* x, int64_t n);

}  // namespace gitfast::search
