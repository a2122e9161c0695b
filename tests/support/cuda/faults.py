"""Mistakes one could make in the CUDA kernels, each a line as it is and as it would be wrong."""

from __future__ import annotations

from dataclasses import dataclass

# Where the cases of small_cases.py have their kernel.
KERNELS = {
    "norm": "csrc/cuda/norm.cu",
    "tile_product": "csrc/tests/tile_product.cu",
    "activation": "csrc/cuda/activation.cu",
    "embed": "csrc/cuda/norm.cu",
    "attention": "csrc/cuda/attention.cu",
    "attention_f32": "csrc/cuda/attention_f32.cu",
    "linear": "csrc/cuda/linear.cuh",
    "linear_wide": "csrc/cuda/linear.cuh",
    "select": "csrc/cuda/select.cu",
    "select_wide": "csrc/cuda/select.cu",
    "attention_int8": "csrc/cuda/attention.cu",
    "search": "csrc/cuda/search.cuh",
    "decode": "csrc/cuda/decode.cuh",
    "caption": "csrc/cuda/caption.cu",
}
# Not for the thread sanitizer, under which every block keeps the memory of its threads.
MANY_BLOCKS = ("linear_wide", "select_wide")


@dataclass
class Fault:
    """A line of a kernel as it is and as it is wrong, and what must be said of it."""

    kernel: str
    right: str
    wrong: str
    found: str
    sanitizer: str = "address"
    file: str = ""  # where it is not in the kernel's own


WRONG_VALUES = "times the tolerance"
OUT_OF_BOUNDS = "AddressSanitizer: heap-buffer-overflow"
UNALIGNED = "an address is not aligned"
RACE = "ThreadSanitizer: data race"
FAULTS = {
    "missing barrier": Fault("norm", "  __syncthreads();\n", "", RACE, "thread"),
    "shared memory reused without a barrier": Fault("norm", "partial + kMaxWarps) /", "partial) /", RACE, "thread"),
    "barrier in a branch": Fault(
        "norm", "  __syncthreads();", "  if (threadIdx.x < 32) __syncthreads();", "__syncthreads"
    ),
    "lanes left out of the reduction": Fault(
        "norm", "= sum_of_warp(value);", "+= __shfl_xor_sync(kAllLanes, value, 16);", WRONG_VALUES
    ),
    "wrong mask": Fault("norm", "= sum_of_warp(value);", "= __shfl_xor_sync(0xffffu, value, 1);", "mask lacks a lane"),
    "a warp left out": Fault("norm", "warp < blockDim.x", "warp + 1 < blockDim.x", WRONG_VALUES),
    "last chunk left out": Fault("norm", "args.width) / N;", "args.width) / N - 1;", WRONG_VALUES),
    "read past the row": Fault(
        "norm", "if (chunk >= chunks) break;\n    const Chunk loaded", "const Chunk loaded", OUT_OF_BOUNDS
    ),
    "write past the row": Fault(
        "norm", "if (chunk >= chunks) break;\n    const Chunk weight", "const Chunk weight", OUT_OF_BOUNDS
    ),
    "too little shared memory": Fault("norm", "2 * kMaxWarps * sizeof", "kMaxWarps * sizeof", OUT_OF_BOUNDS),
    "vectors at any address": Fault("norm", "aligned(args.gamma, 0, 16)", "true", UNALIGNED),
    "vectors in rows of any stride": Fault("norm", "args.x, args.x_stride * size, 16", "args.x, 0, 16", UNALIGNED),
    "copies not waited for": Fault("tile_product", "    cp_async_wait<1>();\n", "", WRONG_VALUES),
    "one group too few waited for": Fault("tile_product", "cp_async_wait<1>", "cp_async_wait<2>", WRONG_VALUES),
    "copies read before a barrier": Fault(
        "tile_product", "    __syncthreads();\n    const T* a", "    const T* a", RACE, "thread"
    ),
    "tiles overwritten while read": Fault(
        "tile_product", "    __syncthreads();  // before", "    // before", RACE, "thread"
    ),
    "a row too far": Fault("tile_product", "row < row_limit", "row <= row_limit", OUT_OF_BOUNDS),
    "rows beyond the end stored": Fault("tile_product", "m < M && at < N", "at < N", OUT_OF_BOUNDS),
    "wrong row of a matrix": Fault("tile_product", "lane % 16 * kStrideB", "lane % 8 * kStrideB", WRONG_VALUES),
    "wrong half of a fragment": Fault(
        "tile_product", "sums[1], left, right[2]", "sums[1], left, right[0]", WRONG_VALUES
    ),
    "rows of unaligned stride": Fault("tile_product", "kTileK + 8,", "kTileK + 4,", UNALIGNED),
}
FAULTS |= {
    "activation: threads past the row": Fault(
        "activation", "  if (chunk >= static_cast<int>(args.width) / N) return;\n", "", OUT_OF_BOUNDS
    ),
    "activation: half of a long row": Fault("activation", "dim3(args.rows, blocks)", "dim3(args.rows)", WRONG_VALUES),
    "activation: output rows as far apart as the input's": Fault(
        "activation", "row * args.out_stride", "row * args.x_stride", OUT_OF_BOUNDS
    ),
    "activation: vectors at any address": Fault("activation", "aligned(args.bias, 0, 16)", "true", UNALIGNED),
    "activation: digits lost by cancellation": Fault(
        "activation",
        "erfcf(-0.707106781f * x)",
        "(1.0f + erff(0.707106781f * x))",
        WRONG_VALUES,
        file="csrc/cuda/activation.cuh",
    ),
}
FAULTS |= {
    "embed: a word behind the table": Fault("embed", "row < rows ? row", "row <= rows ? row", OUT_OF_BOUNDS),
    "embed: a word before the table": Fault("embed", "exists = x_row >= 0", "exists = x_row >= -1", OUT_OF_BOUNDS),
    "embed: positions of words": Fault(
        "embed", "source_row(args.residual_index", "source_row(args.x_index", WRONG_VALUES
    ),
    "embed: a missing word unmarked": Fault("embed", "exists ? args.eps : NAN", "args.eps", WRONG_VALUES),
}
ATTENTION_PARTS, SOFTMAX = "csrc/cuda/attention.cuh", "csrc/cuda/softmax.cuh"
FAULTS |= {
    "attention: keys not waited for": Fault("attention", "    cp_async_wait<1>();\n", "", WRONG_VALUES),
    "attention: queries not waited for": Fault("attention", "    cp_async_wait<0>();\n", "", WRONG_VALUES),
    "attention: keys read before a barrier": Fault(
        "attention", "    __syncthreads();\n    const P* stage", "    const P* stage", RACE, "thread"
    ),
    "attention: keys overwritten while read": Fault(
        "attention", "    __syncthreads();  // before", "    // before", RACE, "thread"
    ),
    "attention: scores read before a barrier": Fault(
        "attention", "    __syncwarp();\n    const int g", "    const int g", RACE, "thread"
    ),
    "attention: weights read before a barrier": Fault(
        "attention", "    __syncwarp();\n    for (int half", "    for (int half", WRONG_VALUES
    ),
    "attention: weights overwritten while read": Fault(
        "attention", "    __syncwarp();  // before", "    // before", WRONG_VALUES
    ),
    "attention: new keys read before a barrier": Fault(
        "attention", "    cp_async_wait<0>();\n    __syncthreads();\n", "    cp_async_wait<0>();\n", RACE, "thread"
    ),
    "attention: a key too many": Fault("attention", "i % 2 < left ?", "i % 2 <= left ?", WRONG_VALUES),
    "attention: a prefix read beyond its end": Fault(
        "attention", "const bool valid = row < limit;", "const bool valid = row <= limit;", OUT_OF_BOUNDS
    ),
    "attention: rows beyond the tile stored": Fault("attention", "    if (r >= own) continue;\n", "", OUT_OF_BOUNDS),
    "attention: text of rows that are not there": Fault(
        "attention", "if (r < rows && begin", "if (r <= rows && begin", OUT_OF_BOUNDS
    ),
    "attention: text beyond a row's end": Fault(
        "attention", "more < kTextKeys ? more :", "more < kTextKeys ? more + 1 :", "AddressSanitizer"
    ),
    "attention: totals not rescaled": Fault("attention", "      total[half] *= factor;\n", "", WRONG_VALUES),
    "attention: sums not rescaled": Fault(
        "attention", "out[n][2 * half + i] *= factor;", "out[n][2 * half + i] *= 1;", WRONG_VALUES
    ),
    "attention: no key yet, and not a number": Fault("attention", "top == -INFINITY ? 0.0f : top", "top", WRONG_VALUES),
    "attention: the halves of a warp's keys exchanged": Fault(
        "attention", "lane / 16 * 8 + lane % 8) * kStride", "lane / 8 % 2 * 8 + lane % 8) * kStride", WRONG_VALUES
    ),
    "attention: too little shared memory for scores": Fault(
        "attention", "(2 * kScales + kScores)", "2 * kScales", OUT_OF_BOUNDS
    ),
    "attention: the new token's slot is the one before": Fault(
        "attention",
        "args.text_len[row] - 1];",
        "args.text_len[row] - 2 + (args.text_len[row] == 1)];",
        WRONG_VALUES,
        file=ATTENTION_PARTS,
    ),
    "attention: keys lost where they do not divide": Fault(
        "attention",
        "tiles * (blockIdx.z + 1) / gridDim.z",
        "tiles / gridDim.z * (blockIdx.z + 1)",
        WRONG_VALUES,
        file=ATTENTION_PARTS,
    ),
    "attention: text in every part": Fault(
        "attention", "blockIdx.z == gridDim.z - 1", "true", WRONG_VALUES, file=ATTENTION_PARTS
    ),
    "attention: the total of one lane": Fault(
        "attention", "{rows.peak[half], total}", "{rows.peak[half], rows.total[half]}", WRONG_VALUES
    ),
    "attention: a workspace for one part": Fault("attention", "args.splits * args.rows", "args.rows", OUT_OF_BOUNDS),
    "attention: a fence before the other threads are there": Fault(
        "attention", "  __syncthreads();  // before the fence", "  // before the fence", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: no fence before counting": Fault(
        "attention", "    __threadfence();\n    const", "    const", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: no fence after counting": Fault(
        "attention", "    __threadfence();\n    *shared", "    *shared", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: the count read before a barrier": Fault(
        "attention", "  __syncthreads();\n  return", "  return", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: counters left as they are": Fault(
        "attention", "atomicInc(counter, last)", "atomicInc(counter, ~0u)", WRONG_VALUES, file=ATTENTION_PARTS
    ),
    "attention: parts merged by whoever comes first": Fault(
        "attention", "before == last", "before == 0", WRONG_VALUES, file=ATTENTION_PARTS
    ),
    "attention: parts merged from one's own": Fault(
        "attention",
        "state_of(args, split, row",
        "state_of(args, (split + blockIdx.z) % splits, row",
        WRONG_VALUES,
        file=ATTENTION_PARTS,
    ),
    "attention: no part has a key, and not a number": Fault(
        "attention", "peak == -INFINITY ? 0.0f : peak", "peak", WRONG_VALUES, file=SOFTMAX
    ),
    "attention: rows that see no image computed": Fault("attention", "  if (image < 0) return;\n", "", WRONG_VALUES),
    "attention: parts not rescaled": Fault(
        "attention", "part.at[1] * common.second", "part.at[1]", WRONG_VALUES, file=ATTENTION_PARTS
    ),
}
FAULTS |= {
    "linear: the previous kernel not waited for": Fault(
        "linear", "  wait_for_previous_kernel();\n", "", "read before the previous kernel is waited for"
    ),
    "linear: sums read before a barrier": Fault("linear", "  __syncthreads();\n", "", RACE, "thread"),
    "linear: a row too many": Fault("linear", "if (g + 8 < x.count)", "if (g + 7 < x.count)", OUT_OF_BOUNDS),
    "linear: a row too few": Fault("linear", "if (g < x.count)", "if (g + 1 < x.count)", WRONG_VALUES),
    "linear: a step too many": Fault("linear", "if (step >= steps) break;", "if (step > steps) break;", OUT_OF_BOUNDS),
    "linear: weights of later steps not loaded": Fault(
        "linear", "ahead[i]);\n    }\n  }", "ahead[0]);\n    }\n  }", WRONG_VALUES
    ),
    "linear: a tile behind the weight": Fault(
        "linear_wide", "if (first + n < tiles) to[n]", "if (first + n <= tiles) to[n]", OUT_OF_BOUNDS
    ),
    "linear: half of the weights used twice": Fault(
        "linear", "(ahead[i][n], k + 1));", "(ahead[i][n], k));", WRONG_VALUES
    ),
    "linear: halves of a tile exchanged": Fault(
        "linear",
        "{a[0][k], a[1][k], a[0][k + 1], a[1][k + 1]}",
        "{a[1][k], a[0][k], a[1][k + 1], a[0][k + 1]}",
        WRONG_VALUES,
    ),
    "linear: one warp's sums left out": Fault("linear", "int warp = 0; warp <", "int warp = 1; warp <", WRONG_VALUES),
    "linear: bytes without a sign": Fault(
        "linear",
        "static_cast<int8_t>(two),",
        "static_cast<uint8_t>(two),",
        WRONG_VALUES,
        file="csrc/cuda/packed_weight.cuh",
    ),
    "linear: too little shared memory": Fault(
        "linear", "kProductWarps * kTiles * kTileSums", "kTiles * kTileSums", OUT_OF_BOUNDS, file="csrc/cuda/linear.cu"
    ),
    "linear: columns beyond the end stored": Fault(
        "linear", "    if (column >= args.weight.columns) continue;\n", "", OUT_OF_BOUNDS, file="csrc/cuda/linear.cu"
    ),
}
CHOICES = "csrc/cuda/select.cuh"
FAULTS |= {
    "select: sums overwritten while read": Fault(
        "select", "    __syncthreads();  // before", "    // before", RACE, "thread"
    ),
    "select: a token behind the last": Fault(
        "select", "if (column < columns) {", "if (column <= columns) {", OUT_OF_BOUNDS
    ),
    "select: logits of tokens that are not there": Fault(
        "select",
        "left < kPart ? static_cast<int>(left) : kPart",
        "left < kPart ? static_cast<int>(left) + 1 : kPart",
        OUT_OF_BOUNDS,
    ),
    "select: a token chosen twice": Fault(
        "select",
        "if (mine[i].token == top.token) mine[i]",
        "if (mine[i].token == -1) mine[i]",
        WRONG_VALUES,
        file=CHOICES,
    ),
    "select: a part's best chosen twice": Fault(
        "select", "++taken[from], from = -1", "++taken[from]", WRONG_VALUES, file=CHOICES
    ),
    "select: the previous kernel not waited for": Fault(
        "select",
        "  wait_for_previous_kernel();\n  const Workspace known(args);\n  const int64_t row = blockIdx.x;\n  choose",
        "  const Workspace known(args);\n  const int64_t row = blockIdx.x;\n  choose",
        "read before the previous kernel is waited for",
    ),
    "select: a part without tokens, and not a number": Fault(
        "select", "peak == -INFINITY ? 0.0f : peak", "peak", WRONG_VALUES, file=CHOICES
    ),
    "select: weight of earlier parts forgotten": Fault(
        "select_wide", "    before += __shfl_sync(kAllLanes, upto, kWarpSize - 1);\n", "", WRONG_VALUES
    ),
    "select: the quantile within the row, not the part": Fault(
        "select", "(target - before_found)", "(target - 0 * before_found)", WRONG_VALUES
    ),
    "select: the token after the drawn one": Fault(
        "select", "if (left < 0) break;", "if (left < -1) break;", WRONG_VALUES
    ),
    "select: totals over the choices": Fault(
        "select", "rows * parts * count)", "rows * parts * (count - 1))", WRONG_VALUES, file=CHOICES
    ),
    "select: too little shared memory": Fault("select", "(kPartial + kProductRows * kPart)", "kPartial", OUT_OF_BOUNDS),
}
FAULTS |= {
    "attention_f32: queries read before a barrier": Fault(
        "attention_f32", "  if (range.count == 0) __syncthreads();\n", "", RACE, "thread"
    ),
    "attention_f32: keys read before a barrier": Fault(
        "attention_f32", "    __syncthreads();\n#pragma", "#pragma", RACE, "thread"
    ),
    "attention_f32: keys overwritten while read": Fault(
        "attention_f32", "    __syncthreads();  // before", "    // before", RACE, "thread"
    ),
    "attention_f32: a key too many": Fault("attention_f32", "lane < here ? dot", "lane <= here ? dot", WRONG_VALUES),
    "attention_f32: a token too many": Fault(
        "attention_f32", "if (lane < here)", "if (lane <= here)", "AddressSanitizer"
    ),
    "attention_f32: rows beyond the tile stored": Fault(
        "attention_f32", "    if (r >= own) break;\n", "", "AddressSanitizer"
    ),
    "attention_f32: columns beyond a row stored": Fault(
        "attention_f32", "if (lane + i * kWarpSize < width) to", "to", OUT_OF_BOUNDS
    ),
    "attention_f32: totals not rescaled": Fault(
        "attention_f32", "fmaf(total, factor, weight)", "total + weight", WRONG_VALUES
    ),
    "attention_f32: sums not rescaled": Fault("attention_f32", "sum *= factor;", "sum *= 1;", WRONG_VALUES),
    "attention_f32: a peak for each lane": Fault(
        "attention_f32", "fmaxf(top, __shfl_xor_sync(kAllLanes, top, lanes))", "fmaxf(top, top)", WRONG_VALUES
    ),
    "attention_f32: no shared memory for values": Fault("attention_f32", "2 * kKeys", "kKeys", OUT_OF_BOUNDS),
}
FAULTS |= {
    "attention_int8: keys read before a barrier": Fault(
        "attention_int8", "      __syncthreads();\n      keys", "      keys", RACE, "thread"
    ),
    "attention_int8: scales read beyond their end": Fault(
        "attention_int8", "from + i : from, i < limit)", "from + i : from + i, true)", OUT_OF_BOUNDS
    ),
    "attention_int8: values times the scales of keys": Fault(
        "attention_int8", "kPrefixStride, stage_scales + kKeys", "kPrefixStride, stage_scales", WRONG_VALUES
    ),
    "attention_int8: scales of one stage": Fault(
        "attention_int8", "(2 * kScales + kScores)", "(kScales + kScores)", OUT_OF_BOUNDS
    ),
}
FAULTS |= {
    "search: the step counted while others read it": Fault(
        "search", "  __syncwarp();  // all lanes know\n", "", RACE, "thread"
    ),
    "search: a continuation taken twice": Fault("search", "      ++taken;\n", "", WRONG_VALUES),
    "search: choices of the next row": Fault(
        "search", "i < own ? choices.log_probs", "i <= own ? choices.log_probs", OUT_OF_BOUNDS
    ),
    "search: of equal continuations the later row": Fault(
        "search", "other > best || (other == best && other_from < from)", "other > best", WRONG_VALUES
    ),
    "search: every continuation may finish": Fault(
        "search", "lane < beams && candidate.ends", "candidate.ends && lane < kWarpSize", WRONG_VALUES
    ),
    "search: finished beams that stay where they are": Fault(
        "search", "old_rank += others > old.score;", "", WRONG_VALUES
    ),
    "search: a place beyond the last": Fault("search", "finishes && fresh_rank < beams", "finishes", OUT_OF_BOUNDS),
    "search: the end of sequence counted as text": Fault(
        "search", "(ends_in_eos ? 1 : 0)", "(ends_in_eos ? 0 : 0)", WRONG_VALUES
    ),
    "search: beams that end stay": Fault(
        "search", "score > -INFINITY && !candidate.ends", "score > -INFINITY", WRONG_VALUES
    ),
    "search: slots of other beams": Fault("search", "exists && mine.row != lane", "false", WRONG_VALUES),
    "search: the last slot left": Fault(
        "search", "lane, prompt_len, prompt_len + step);", "lane, prompt_len, prompt_len + step - 1);", WRONG_VALUES
    ),
    "search: every second slot exchanged": Fault(
        "search", "base += kBatch * lanes_per_row", "base += 2 * kBatch * lanes_per_row", WRONG_VALUES
    ),
    "search: full length where not asked for": Fault(
        "search", "? limit : new_tokens;", "? new_tokens : new_tokens;", WRONG_VALUES
    ),
    "search: records of rows that are not there": Fault(
        "search", "  if (lane >= beams) return Ended::no;\n", "", OUT_OF_BOUNDS
    ),
    "search: prompts shared by nobody": Fault(
        "search", "column < length - 1 ? first : own", "own + 0 * first", "KeyError"
    ),
    "search: a text beyond the last": Fault(
        "search", "next < s.settings->texts", "next <= s.settings->texts", OUT_OF_BOUNDS
    ),
    "search: nobody takes the next text": Fault("search", "next < s.settings->texts", "next < 0", "AssertionError"),
    "search: the image of the text before": Fault(
        "search", "  see_image(s, item, s.images[prompt]);\n", "", "AssertionError"
    ),
    "search: an image for rows that do nothing": Fault("search", "  see_image(s, item, -1);\n", "", "AssertionError"),
    "search: steps of the text before": Fault(
        "search", "s.steps[item] = s.ended[text]", "s.ended[text]", "AssertionError"
    ),
    "search: a next text of every lane": Fault(
        "search", "  next = __shfl_sync(kAllLanes, next, 0);\n", "", "AssertionError"
    ),
    "search: one more token than asked for": Fault(
        "search", "step + 1 >= limit_of", "step >= limit_of", "AssertionError"
    ),
    "search: a score at the edge dropped": Fault(
        "search", "scores.own[j] < least", "scores.own[j] <= least", WRONG_VALUES
    ),
    "search: half of the choices drawn from": Fault(
        "search", "i < kWarpSize ? first : second", "i >= 0 ? first : second", WRONG_VALUES
    ),
    "search: draws in order of score": Fault(
        "search", "if (token < tokens.own[j])", "if (token >= 0 && i < lane_of_warp() + j * kWarpSize)", WRONG_VALUES
    ),
    "search: scores not over the temperature": Fault(
        "search", "below_best / settings.temperature", "below_best", WRONG_VALUES
    ),
    "search: the share of a token too many": Fault(
        "search",
        "reached < double{share} * sum",
        "reached < double{share} * sum + 0.1 * sum",
        WRONG_VALUES,
    ),
    "select: log-probabilities at another temperature": Fault(
        "select", "* args.temperature - known.raw_log", "- known.raw_log", WRONG_VALUES
    ),
    "select: sums at the temperature": Fault(
        "select",
        "raw += weight_of(own[i], peak, args.temperature);",
        "raw += weight_of(own[i], peak);",
        WRONG_VALUES,
    ),
}
WEIGHTS_ON_THE_WAY = "csrc/cuda/weight_stream.cuh"
FAULTS |= {
    "decode: a block written to before it has begun": Fault(
        "decode",
        "  cluster_sync();  // the others",
        "  // the others",
        "shared memory of a block that has not begun",
        file="csrc/cuda/decode.cu",
    ),
    "decode: the previous kernel not waited for": Fault(
        "decode",
        "  wait_for_previous_kernel();\n  if constexpr",
        "  if constexpr",
        "read before the previous kernel is waited for",
        file="csrc/cuda/decode.cu",
    ),
    "decode: partials of other blocks not waited for": Fault(
        "decode", "    cluster_sync();\n    normalize", "    normalize", WRONG_VALUES
    ),
    "decode: queries of other blocks not waited for": Fault(
        "decode", "    cluster_sync();\n    store_keys", "    __syncthreads();\n    store_keys", WRONG_VALUES
    ),
    "decode: states of other blocks not waited for": Fault(
        "decode", "    cluster_sync();\n    constexpr int kStride", "    constexpr int kStride", WRONG_VALUES
    ),
    "decode: inner columns of other blocks not waited for": Fault(
        "decode",
        "    cluster_sync();\n    multiply_rows",
        "    __syncthreads();\n    multiply_rows",
        "shared memory of a block that has ended",
    ),
    "decode: states of warps not waited for": Fault(
        "decode", "    __syncthreads();\n    // What the warps", "    // What the warps", RACE, "thread"
    ),
    "decode: mixed values not waited for": Fault(
        "decode", "    __syncthreads();\n    multiply_rows", "    multiply_rows", RACE, "thread"
    ),
    "decode: rows not waited for": Fault("decode", "    }\n    __syncthreads();\n  }", "    }\n  }", RACE, "thread"),
    "decode: keys stored by every block": Fault(
        "decode", "      if (token % place_.cluster != place_.rank) continue;\n", "", RACE, "thread"
    ),
    "decode: the own token twice": Fault(
        "decode",
        "const bool is_own = valid && j >= keys.prefix && token_of(keys, j) ==",
        "const bool is_own = valid && j >= keys.prefix && token_of(keys, j) + 1 >=",
        WRONG_VALUES,
    ),
    "decode: a key too many": Fault(
        "decode", "const bool valid = j < keys.count();", "const bool valid = j <= keys.count();", "tolerance"
    ),
    "decode: keys lost where they do not divide": Fault(
        "decode",
        "return {prefix_len * (place_.rank + 1) / place_.cluster - begin",
        "return {prefix_len / place_.cluster + 0 * begin",
        WRONG_VALUES,
    ),
    "decode: the residual in every cluster's sums": Fault("decode", "if (place_.head == 0)", "if (true)", WRONG_VALUES),
    "decode: no key yet, and not a number": Fault(
        "decode", "peak == -INFINITY ? 0.0f : peak", "peak", WRONG_VALUES, file=SOFTMAX
    ),
    "decode: a prefix for rows that see none": Fault(
        "decode", "args_.image[row] < 0 ? 0 : args_.prefix_len", "args_.prefix_len", WRONG_VALUES
    ),
    "decode: room for too few rows": Fault(
        "decode",
        "rows = take(size_t{kStreamRows} * row_stride * 2)",
        "rows = take(size_t{2} * row_stride)",
        WRONG_VALUES,
    ),
    "decode: weights not waited for": Fault(
        "decode", " cp_async_wait<kSlots - kStreamPass>(); ", "", WRONG_VALUES, file=WEIGHTS_ON_THE_WAY
    ),
    "decode: one chunk alone waited for": Fault(
        "decode", "kSlots - kStreamPass>", "kSlots - 1>", WRONG_VALUES, file=WEIGHTS_ON_THE_WAY
    ),
    "decode: weights of the next pass before those of the next step": Fault(
        "decode",
        "if (++step_ < share_.steps) return;",
        "if (++step_ > share_.steps) return;",
        WRONG_VALUES,
        file=WEIGHTS_ON_THE_WAY,
    ),
    "decode: sums read before a barrier": Fault(
        "decode", "  __syncthreads();\n", "", RACE, "thread", WEIGHTS_ON_THE_WAY
    ),
    "decode: one share of the depth left out": Fault(
        "decode",
        "for (int i = 0; i < shares; ++i)",
        "for (int i = 1; i < shares; ++i)",
        WRONG_VALUES,
        file=WEIGHTS_ON_THE_WAY,
    ),
}
FAULTS |= {
    "caption: blocks that do not wait for each other": Fault(
        "caption", "load_acquire(counter_) < target_) all", "false) all", "shared memory of a block that has ended"
    ),
    "caption: a wait for those of the round before": Fault(
        "caption", "target_ += gridDim.x;\n", "", "shared memory of a block that has ended"
    ),
    "caption: a block that counts twice": Fault(
        "caption", "add_release(counter_, 1)", "add_release(counter_, 2)", "shared memory of a block that has ended"
    ),
    "caption: threads behind who waits": Fault(
        "caption", "    }\n    __syncthreads();\n    return *flag_", "    }\n    return *flag_", RACE, "thread"
    ),
    "caption: threads that still write when who waits counts": Fault(
        "caption", " bool wait() {\n    __syncthreads();", " bool wait() {", RACE, "thread"
    ),
    "caption: sums added up where they are written": Fault(
        "caption", "decode_.mlp(i, partials[1]);", "decode_.mlp(i, partials[0]);", WRONG_VALUES
    ),
    "caption: logits overwritten while read": Fault(
        "caption", "      __syncthreads();  // before the next sums", "      // before the next sums", RACE, "thread"
    ),
    "caption: tokens chosen before all rows have theirs": Fault(
        "caption", "nothing);\n      __syncthreads();", "nothing);", RACE, "thread"
    ),
}
