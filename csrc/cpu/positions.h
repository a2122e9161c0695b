// Position embeddings for images that do not have the size the model was trained with.
#pragma once

#include "buffer.h"

namespace gitfast::cpu {

// Resizes a table (1 + side * side, d), the class token's position first, to (1 + rows * columns, d): bicubic with
// a = -0.75, corners not aligned, borders clamped, no antialiasing, as torch.nn.functional.interpolate. The class
// token's position is kept.
Buffer interpolate_positions(const float* table, int64_t side, int64_t d, int64_t rows, int64_t columns);

}  // namespace gitfast::cpu
