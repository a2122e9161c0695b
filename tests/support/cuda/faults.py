"""Mistakes one could make in the CUDA kernels, each some tokens of a function as they are and as they would be wrong.

Tokens are compared without the white space between them, so that formatting moves no fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The sources of the kernels that small_cases.py runs.
KERNELS = {
    "norm": "csrc/cuda/norm.cu",
    "tile_product": "csrc/tests/tile_product.cu",
    "activation": "csrc/cuda/activation.cu",
    "embed": "csrc/cuda/norm.cu",
    "attention": "csrc/cuda/attention.cu",
    "attention_f32": "csrc/cuda/attention_f32.cu",
    "linear": "csrc/cuda/linear.cuh",
    "norm_linear": "csrc/cuda/norm.cuh",
    "linear_wide": "csrc/cuda/linear.cuh",
    "select": "csrc/cuda/select.cu",
    "select_wide": "csrc/cuda/select.cu",
    "attention_int8": "csrc/cuda/attention.cu",
    "search": "csrc/cuda/search.cuh",
    "decode": "csrc/cuda/decode.cuh",
    "persistent": "csrc/cuda/persistent.cu",
}
# Not for the thread sanitizer, under which every block keeps the memory of its threads.
MANY_BLOCKS = ("linear_wide", "select_wide")


@dataclass
class Fault:
    """Tokens of a kernel as they are and as they are wrong, and what must be said of it, a regular expression."""

    kernel: str
    right: str
    wrong: str
    found: str
    sanitizer: str = "address"
    file: str = ""  # where it is not in the kernel's own
    within: str = ""  # the function, where the tokens are in others too

    def plant(self, text: str) -> str:
        """Return a source with the fault. Raises ValueError unless its place is found, and once."""
        begin, end = _body(text, self.within) if self.within else (0, len(text))
        tokens = re.findall(r"\w+|[^\w\s]", self.right)
        found = list(re.compile(r"\s*".join(map(re.escape, tokens))).finditer(text, begin, end))
        if len(found) != 1:
            raise ValueError(f"{self.right!r} stands {len(found)} times in {self.within or 'the file'}")
        return text[: found[0].start()] + self.wrong + text[found[0].end() :]


def _body(text: str, function: str) -> tuple[int, int]:
    """Return the offsets at which the definition of a function begins and ends."""
    definition = re.search(rf"\b{function}\([^;{{}}]*?\)[\w\s]*{{", text)
    if definition is None:
        raise ValueError(f"no function {function}")
    depth, at = 1, definition.end()
    while depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return definition.start(), at


WRONG_VALUES = "times the tolerance"
OUT_OF_BOUNDS = "AddressSanitizer: heap-buffer-overflow"
UNALIGNED = "an address is not aligned"
UNWAITED = "read before the previous kernel is waited for"
RACE = "ThreadSanitizer: data race"
FAULTS = {
    "missing barrier": Fault("norm", "__syncthreads();", "", RACE, "thread", within="block_sum"),
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
        "norm",
        "if (chunk >= chunks) break; add(values[i], load_after_wait(x + chunk));",
        "add(values[i], load_after_wait(x + chunk));",
        OUT_OF_BOUNDS,
    ),
    "write past the row": Fault("norm", "if (chunk >= chunks) break; Chunk result;", "Chunk result;", OUT_OF_BOUNDS),
    "too little shared memory": Fault("norm", "2 * kMaxWarps * sizeof", "kMaxWarps * sizeof", OUT_OF_BOUNDS),
    "vectors at any address": Fault("norm", "aligned(args.gamma, 0, 16)", "true", UNALIGNED),
    "vectors in rows of any stride": Fault("norm", "args.x, args.x_stride * size, 16", "args.x, 0, 16", UNALIGNED),
    "the previous kernel not waited for": Fault("norm", "wait_for_previous_kernel();", "", UNWAITED),
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
    "attention: keys not waited for": Fault(
        "attention", "cp_async_wait<1>();", "", WRONG_VALUES, within="attend_to_prefix"
    ),
    "attention: queries not waited for": Fault("attention", "cp_async_wait<1>();", "", WRONG_VALUES, within="run"),
    "attention: keys read before a barrier": Fault(
        "attention", "__syncthreads();  // the tile is there", "", RACE, "thread"
    ),
    "attention: keys overwritten while read": Fault(
        "attention", "__syncthreads();  // before the next copies", "// before", RACE, "thread"
    ),
    "attention: new keys read before a barrier": Fault(
        "attention", "__syncthreads();  // all queries", "// all queries", RACE, "thread"
    ),
    "attention: states read before a barrier": Fault(
        "attention", "__syncthreads();  // all states", "// all states", RACE, "thread"
    ),
    "attention: a key too many": Fault("attention", "+ i < left ?", "+ i <= left ?", WRONG_VALUES),
    "attention: a prefix read beyond its end": Fault(
        "attention", "const bool valid = row < limit;", "const bool valid = row <= limit;", OUT_OF_BOUNDS
    ),
    "attention: rows beyond the tile stored": Fault(
        "attention", "i < count_ * kChunks", "i < (count_ + 1) * kChunks", OUT_OF_BOUNDS
    ),
    "attention: text of rows that are not there": Fault(
        "attention", "row < count_; row += kWarps", "row <= count_; row += kWarps", OUT_OF_BOUNDS
    ),
    "attention: text beyond a row's end": Fault(
        "attention", "left < kWarpSize ? left :", "left < kWarpSize ? left + 1 :", "AddressSanitizer"
    ),
    "attention: the entry of the first token for all": Fault(
        "attention", "__shfl_sync(kAllLanes, entry, k)", "__shfl_sync(kAllLanes, entry, 0)", WRONG_VALUES
    ),
    "attention: totals not rescaled": Fault("attention", "total *= factor;", "", WRONG_VALUES, file=SOFTMAX),
    "attention: sums not rescaled": Fault(
        "attention", "out[n][2 * half + i] *= factor;", "out[n][2 * half + i] *= 1;", WRONG_VALUES
    ),
    "attention: sums of text not rescaled": Fault(
        "attention", "sum *= factor;", "sum *= 1;", WRONG_VALUES, file=SOFTMAX
    ),
    "attention: the halves of a warp's keys exchanged": Fault(
        "attention", "lane / 16 * 8 + lane % 8) * kStride", "lane / 8 % 2 * 8 + lane % 8) * kStride", WRONG_VALUES
    ),
    "attention: keys of the first warp for all": Fault(
        "attention", "warp % Parts::kKeyWarps * kWarpKeys;", "warp % Parts::kKeyWarps * 0;", WRONG_VALUES
    ),
    "attention: one warp's keys left out": Fault(
        "attention", "int warp = 0; warp < Parts::kKeyWarps", "int warp = 1; warp < Parts::kKeyWarps", WRONG_VALUES
    ),
    "attention: too little shared memory for text": Fault(
        "attention", "kText * sizeof(float) + (", "(", OUT_OF_BOUNDS
    ),
    "attention: the new token's entry is the one before": Fault(
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
        "attention", "{softmax[half].peak, total}", "{softmax[half].peak, softmax[half].total}", WRONG_VALUES
    ),
    "attention: the total of one lane's text": Fault(
        "attention", "sum_of_warp(sums.total)", "sums.total", WRONG_VALUES
    ),
    "attention: a workspace for one part": Fault("attention", "args.splits * args.rows", "args.rows", OUT_OF_BOUNDS),
    "attention: counted before the other threads are there": Fault(
        "attention", "__syncthreads();  // before the count", "// before the count", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: counted in no order": Fault(
        "attention", "increment_acq_rel(counter, last)", "atomicInc(counter, last)", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: the count read before a barrier": Fault(
        "attention", "__syncthreads(); return *shared", "return *shared", RACE, "thread", ATTENTION_PARTS
    ),
    "attention: counters left as they are": Fault(
        "attention", "increment_acq_rel(counter, last)", "increment_acq_rel(counter, ~0u)", WRONG_VALUES,
        file=ATTENTION_PARTS,
    ),
    "attention: parts merged by whoever comes first": Fault(
        "attention", "(counter, last) == last", "(counter, last) == 0", WRONG_VALUES, file=ATTENTION_PARTS
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
    "attention: rows that see no image computed": Fault("attention", "if (image_ < 0) return;", "", WRONG_VALUES),
    "attention: parts not rescaled": Fault(
        "attention", "fmaf(other.total, factor, total)", "other.total + total", WRONG_VALUES, file=SOFTMAX
    ),
}  # fmt: skip
LINEAR = "csrc/cuda/linear.cu"
FAULTS |= {
    "linear: the previous kernel not waited for": Fault(
        "linear", "wait_for_previous_kernel();", "", UNWAITED, file=LINEAR
    ),
    "linear: sums read before a barrier": Fault("linear", "__syncthreads();", "", RACE, "thread", within="store"),
    "linear: sums stored where x is read": Fault(
        "linear", "__syncthreads();  // before the sums", "// before the sums", RACE, "thread", LINEAR
    ),
    "linear: x read before a barrier": Fault(
        "linear", "begin, end); __syncthreads();", "begin, end);", RACE, "thread"
    ),
    "linear: x overwritten while read": Fault("linear", "if (begin > 0) __syncthreads();", "", RACE, "thread"),
    "linear: x not waited for": Fault("linear", "cp_async_wait<0>();", "", WRONG_VALUES),
    "linear: a row too many": Fault("linear", "(row < count_ ? row : count_ - 1)", "row", OUT_OF_BOUNDS),
    "linear: half of the rows": Fault("linear", "if (count_ > 8)", "if (count_ > 16)", WRONG_VALUES),
    "linear: weights of later steps not loaded": Fault(
        "linear", "kProductWarps, ahead_[i]); step +=", "kProductWarps, ahead_[0]); step +=", WRONG_VALUES
    ),
    "linear: a tile behind the weight": Fault(
        "linear_wide", "if (n < columns_) to[n]", "if (n <= columns_) to[n]", OUT_OF_BOUNDS
    ),
    "linear: half of the weights used twice": Fault(
        "linear", "(ahead_[i][n], k + 1));", "(ahead_[i][n], k));", WRONG_VALUES
    ),
    "linear: halves of a tile exchanged": Fault(
        "linear",
        "{a.upper[k], a.lower[k], a.upper[k + 1], a.lower[k + 1]}",
        "{a.lower[k], a.upper[k], a.lower[k + 1], a.upper[k + 1]}",
        WRONG_VALUES,
    ),
    "linear: one warp's sums left out": Fault("linear", "int warp = 0; warp <", "int warp = 1; warp <", WRONG_VALUES),
    "linear: bytes without a sign": Fault(
        "linear",
        "static_cast<int8_t>(two),",
        "static_cast<uint8_t>(two),",
        WRONG_VALUES,
        file="csrc/cuda/tiled_weight.cuh",
    ),
    "linear: too little shared memory": Fault(
        "linear", "stage > kPartial ? stage : kPartial", "stage", OUT_OF_BOUNDS, file=LINEAR
    ),
    "linear: columns beyond the end stored": Fault(
        "linear", "row < count && column < args.weight.columns", "row < count", OUT_OF_BOUNDS, file=LINEAR
    ),
    "linear: the residual of the row before": Fault(
        "linear", "(row0 + row) * args.residual_stride", "(row0 + row / 2) * args.residual_stride", WRONG_VALUES,
        file=LINEAR,
    ),
}  # fmt: skip
FAULTS |= {
    "norm_linear: sums read before a barrier": Fault(
        "norm_linear", "sums[at] = sum; }); __syncthreads();", "sums[at] = sum; });", RACE, "thread"
    ),
    "norm_linear: squares read before a barrier": Fault(
        "norm_linear", "squares[at] = sum; }); __syncthreads();", "squares[at] = sum; });", RACE, "thread"
    ),
    "norm_linear: rows multiplied before a barrier": Fault(
        "norm_linear", "copy(row, element, result); }); __syncthreads();", "copy(row, element, result); });", RACE,
        "thread",
    ),
    "norm_linear: staged rows read before a barrier": Fault(
        "norm_linear", "0, steps_); __syncthreads();", "0, steps_);", RACE, "thread", KERNELS["linear"]
    ),
    "norm_linear: squares where sums are": Fault(
        "norm_linear", "given.partial + given.count * kNormParts", "given.partial", RACE, "thread"
    ),
    "norm_linear: a part left out": Fault("norm_linear", "part < kNormParts", "part < kNormParts - 1", WRONG_VALUES),
    "norm_linear: parts added in another order": Fault(
        "norm_linear", "parts[row * kNormParts + part]", "parts[row * kNormParts + kNormParts - 1 - part]", WRONG_VALUES
    ),
    "norm_linear: read past the row": Fault(
        "norm_linear",
        "if (element < given.width) { const Chunk chunk = chunk_at(row, element); for (int j = 0; j < 8; ++j) sum +=",
        "{ const Chunk chunk = chunk_at(row, element); for (int j = 0; j < 8; ++j) sum +=",
        WRONG_VALUES,
    ),
    "norm_linear: write past the row": Fault(
        "norm_linear", "if (element >= given.width) return;", "", OUT_OF_BOUNDS
    ),
    "norm_linear: the first row for all": Fault(
        "norm_linear", "given.rows + row * given.row_stride + element)); };", "given.rows + element)); };", WRONG_VALUES
    ),
    "norm_linear: gamma for beta": Fault(
        "norm_linear", "half ? args.beta", "half ? args.gamma", WRONG_VALUES, file=LINEAR
    ),
    "norm_linear: terms past the end": Fault(
        "norm_linear", "if (i < depth) cp_async16", "cp_async16", OUT_OF_BOUNDS, file=LINEAR
    ),
    "norm_linear: too little shared memory": Fault(
        "norm_linear", "2 * args.rows * kNormParts", "args.rows * kNormParts", OUT_OF_BOUNDS, file=LINEAR
    ),
    "norm_linear: rows as far apart as those of x": Fault(
        "norm_linear", "row * args.normalised_stride", "row * args.weight.depth", WRONG_VALUES, file=LINEAR
    ),
    "norm_linear: the norm left to a block that is not there": Fault(
        "norm_linear", "if (blockIdx.x == 0) store_vec", "if (blockIdx.x == 3) store_vec", WRONG_VALUES, file=LINEAR
    ),
    "norm_linear: the norm left by every block": Fault(
        "norm_linear", "if (blockIdx.x == 0) store_vec", "store_vec", RACE, "thread", file=LINEAR
    ),
}  # fmt: skip
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
        "select", "wait_for_previous_kernel();", "", UNWAITED, within="choose_kernel"
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
    "select: too little shared memory": Fault(
        "select", "kLogitsAt + kProductRows * kPart * sizeof(float)", "kLogitsAt", OUT_OF_BOUNDS
    ),
}
FAULTS |= {
    "attention_f32: queries read before a barrier": Fault(
        "attention_f32", "  if (range.count == 0) __syncthreads();\n", "", RACE, "thread"
    ),
    "attention_f32: keys read before a barrier": Fault(
        "attention_f32", "__syncthreads();  // the tile is there", "", RACE, "thread"
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
    "attention_f32: totals not rescaled": Fault("attention_f32", "total *= factor;", "", WRONG_VALUES, file=SOFTMAX),
    "attention_f32: sums not rescaled": Fault(
        "attention_f32", "sum *= factor;", "sum *= 1;", WRONG_VALUES, file=SOFTMAX
    ),
    "attention_f32: a peak for each lane": Fault(
        "attention_f32", "fmaxf(top, __shfl_xor_sync(kAllLanes, top, lanes))", "fmaxf(top, top)", WRONG_VALUES
    ),
    "attention_f32: no shared memory for values": Fault("attention_f32", "2 * kKeys", "kKeys", OUT_OF_BOUNDS),
}
FAULTS |= {
    "attention_int8: keys read before a barrier": Fault(
        "attention_int8", "__syncthreads();  // the tile is whole", "", RACE, "thread"
    ),
    "attention_int8: scales read beyond their end": Fault(
        "attention_int8", "from + i : from, i < limit)", "from + i : from + i, true)", OUT_OF_BOUNDS
    ),
    "attention_int8: values times the scales of keys": Fault(
        "attention_int8", "kPrefixStride, scales + kKeys", "kPrefixStride, scales", WRONG_VALUES
    ),
    "attention_int8: scales of one stage": Fault(
        "attention_int8", "+ 2 * kScales * sizeof(float)", "+ kScales * sizeof(float)", OUT_OF_BOUNDS
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
    "search: more finished beams than there is room for": Fault(
        "search", "finishes && fresh_rank < beams", "finishes", OUT_OF_BOUNDS
    ),
    "search: the end of sequence counted as a token": Fault(
        "search", "(ends_in_eos ? 1 : 0)", "(ends_in_eos ? 0 : 0)", WRONG_VALUES
    ),
    "search: beams that end stay": Fault(
        "search", "score > -INFINITY && !candidate.ends", "score > -INFINITY", WRONG_VALUES
    ),
    "search: entries of other beams": Fault("search", "exists && mine.row != lane", "false", WRONG_VALUES),
    "search: the last entry left": Fault(
        "search", "lane, prompt_len, prompt_len + step);", "lane, prompt_len, prompt_len + step - 1);", WRONG_VALUES
    ),
    "search: every second entry exchanged": Fault(
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
    "search: a sequence beyond the last": Fault(
        "search", "const unsigned queued = *s.queued;", "const unsigned queued = *s.queued + 1;", "AssertionError"
    ),
    "search: nobody takes the next sequence": Fault(
        "search", "if (next >= 0) return begin_sequence", "if (next >= 1 << 30) return begin_sequence", "AssertionError"
    ),
    "search: the image of the sequence before": Fault(
        "search", "  set_image(s, slot, s.images[prompt]);\n", "", "AssertionError"
    ),
    "search: an image for rows that do nothing": Fault("search", "  set_image(s, slot, -1);\n", "", "AssertionError"),
    "search: steps of the sequence before": Fault("search", "  s.steps[slot] = 0;\n", "", "AssertionError"),
    "search: a next sequence of every lane": Fault(
        "search", "  __syncwarp();\n  return s.sequence[slot];", "  return s.sequence[slot];", RACE, "thread"
    ),
    "search: the host not told of the end": Fault(
        "search",
        "*static_cast<volatile int32_t*>(s.ended + s.sequence[slot]) = static_cast<int32_t>(how);",
        "",
        "AssertionError",
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
DECODE_PLAN = "csrc/cuda/decode_plan.cuh"
FAULTS |= {
    "decode: a block written to before it has begun": Fault(
        "decode",
        "cluster_sync();  // the others",
        "// the others",
        "shared memory of a block that has not begun",
        file="csrc/cuda/persistent.cu",
    ),
    "decode: the previous kernel not waited for": Fault(
        "decode", "wait_for_previous_kernel();", "", UNWAITED, file="csrc/cuda/persistent.cu"
    ),
    "decode: partials of other blocks not waited for": Fault(
        "decode", "cluster_sync();", "", WRONG_VALUES, within="add_partials"
    ),
    "decode: queries of other blocks not waited for": Fault(
        "decode", "    cluster_sync();\n    store_keys", "    __syncthreads();\n    store_keys", WRONG_VALUES
    ),
    "decode: states of other blocks not waited for": Fault(
        "decode", "    cluster_sync();\n#pragma unroll 1\n", "#pragma unroll 1\n", WRONG_VALUES, within="attend"
    ),
    "decode: inner columns of other blocks not waited for": Fault(
        "decode", "cluster_sync();", "__syncthreads();", r"tolerance|has ended", within="activate"
    ),
    "decode: states of warps not waited for": Fault(
        "decode", "__syncthreads(); // Merge the states", "// Merge the states", RACE, "thread"
    ),
    "decode: mixed values not waited for": Fault(
        "decode", "normalise());\n    }\n    __syncthreads();", "normalise());\n    }\n", RACE, "thread"
    ),
    "decode: rows not waited for": Fault("decode", "__syncthreads();", "", RACE, "thread", within="normalize"),
    "decode: embeddings not waited for": Fault("decode", "__syncthreads();", "", RACE, "thread", within="embed"),
    "decode: sums read before a barrier": Fault("decode", "__syncthreads();", "", RACE, "thread", within="multiply"),
    "decode: keys stored by every block": Fault(
        "decode",
        "here ? args_.kv_index[row * args_.max_text + token] : -1",
        "args_.kv_index[row * args_.max_text + token] + 0 * here",
        RACE,
        "thread",
    ),
    "decode: the own token twice": Fault(
        "decode", "token_of(row, j) == row.length - 1", "token_of(row, j) + 1 >= row.length - 1", WRONG_VALUES
    ),
    "decode: a key too many": Fault(
        "decode", "const bool valid = j < keys_of(row);", "const bool valid = j <= keys_of(row);", "tolerance"
    ),
    "decode: the first key of a row for the next one": Fault(
        "decode", "last ? number + 1 : number;", "last ? number + 2 : number;", "tolerance|AddressSanitizer"
    ),
    "decode: keys lost where they do not divide": Fault(
        "decode",
        "args.prefix_len * (position_.rank + 1) / position_.cluster - prefix_begin_",
        "args.prefix_len / position_.cluster + 0 * prefix_begin_",
        WRONG_VALUES,
    ),
    "decode: the residual in every cluster's sums": Fault(
        "decode", "if (position_.head == 0)", "if (true)", WRONG_VALUES
    ),
    "decode: a bias in every cluster's sums": Fault(
        "decode", "position.head == 0 ? bias : nullptr", "bias", WRONG_VALUES, file=DECODE_PLAN
    ),
    "decode: no key yet, and not a number": Fault(
        "decode", "peak == -INFINITY ? 0.0f : peak", "peak", WRONG_VALUES, file=SOFTMAX
    ),
    "decode: a prefix for rows that see none": Fault(
        "decode", "row.image < 0 ? 0 : prefix_", "prefix_", r"tolerance|AddressSanitizer"
    ),
    "decode: room for too few rows": Fault(
        "decode",
        "rows = take(size_t{kStreamRows} * row_stride * 2)",
        "rows = take(size_t{2} * row_stride)",
        WRONG_VALUES,
        file=DECODE_PLAN,
    ),
    "decode: weights not waited for": Fault(
        "decode", "cp_async_wait<kGroups - 1>();", "", WRONG_VALUES, file=WEIGHTS_ON_THE_WAY
    ),
    "decode: one group too few waited for": Fault(
        "decode", "cp_async_wait<kGroups - 1>", "cp_async_wait<kGroups>", WRONG_VALUES, file=WEIGHTS_ON_THE_WAY
    ),
    "decode: weights of the next pass before those of the next step": Fault(
        "decode", "if (--steps_left_ == 0) next_pass();", "next_pass();", "tolerance", file=WEIGHTS_ON_THE_WAY
    ),
    "decode: weights of the first step for all": Fault(
        "decode", "chunks_ += step_;", "", WRONG_VALUES, file=WEIGHTS_ON_THE_WAY
    ),
    "decode: one share of the depth left out": Fault(
        "decode",
        "int i = 0; i < kProductWarps; ++i",
        "int i = 1; i < kProductWarps; ++i",
        WRONG_VALUES,
        file=WEIGHTS_ON_THE_WAY,
    ),
}
# Blocks that leave too early are missed by others: what they read is wrong, or not there any more, or they wait.
STUCK = r"tolerance|has ended|deadlock"
FAULTS |= {
    "persistent: blocks that do not wait for each other": Fault(
        "persistent", "static_cast<int>(seen) < target_)", "false)", STUCK
    ),
    "persistent: a wait for those of the round before": Fault("persistent", "target_ += gridDim.x;\n", "", STUCK),
    "persistent: a block that counts twice": Fault(
        "persistent", "add_release(counter_, 1)", "add_release(counter_, 2)", STUCK
    ),
    "persistent: threads behind who waits": Fault(
        "persistent", "__syncthreads(); return *flag_", "return *flag_", RACE, "thread"
    ),
    "persistent: threads that still write when who waits counts": Fault(
        "persistent", "bool wait() { __syncthreads();", "bool wait() {", RACE, "thread"
    ),
    "persistent: sums added up where they are written": Fault(
        "persistent", "phase == kOut ? 0 : int64_t", "true ? 0 : int64_t", RACE, "thread"
    ),
    "persistent: products read before a barrier": Fault(
        "persistent", "  __syncthreads();\n  Stream stream", "  Stream stream", RACE, "thread"
    ),
    "persistent: logits overwritten while read": Fault(
        "persistent", "      __syncthreads();  // before the next sums", "      // before the next sums", RACE, "thread"
    ),
    "persistent: tokens chosen before all rows have theirs": Fault(
        "persistent", "nothing); __syncthreads();", "nothing);", RACE, "thread"
    ),
}
