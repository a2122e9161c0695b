"""The CPU kernels as functions on arrays: what the engine is made of, one call each.

Arguments are float32 arrays in CPU memory: numpy, or anything that speaks DLPack (a torch tensor, say). The result is
a new numpy array, or ``out``, a C-contiguous one of the right shape that overlaps no argument. The global interpreter
lock is released while a kernel runs. ``isa`` names the instruction set (``available_isas()``; default ``GITFAST_ISA``
or the best this machine has), ``pool`` the threads to run on (default: the calling thread). A row's result does not
depend, to the bit, on the rows around it or on the number of threads; AVX2 and AVX-512 agree to the bit too.

Every function raises ``ValueError`` naming the argument, what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gitfast._C import PackedPrefix, PackedWeight, ThreadPool
from gitfast._C import bias_activation as _bias_activation
from gitfast._C import layer_norm as _layer_norm
from gitfast._C import linear as _linear
from gitfast._C import prefix_attention as _prefix_attention


def linear(
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    *,
    activation: Literal["none", "quick_gelu", "gelu"] = "none",
    residual: ArrayLike | None = None,
    out: NDArray[np.float32] | None = None,
    isa: str = "",
    pool: ThreadPool | None = None,
    tiles: bool = False,
) -> NDArray[np.float32]:
    """``activation(x @ weight.T + bias) + residual``: x (M, K), weight (N, K), bias (N,), residual (M, N) -> (M, N).

    The rows of ``x`` may be strided. ``weight`` may also be float16; it is rearranged for the kernel at every call,
    unless it comes as a ``PackedWeight(weight, bias, dtype="float32")``, which does so once, brings its bias along, and
    may store the weight as "bfloat16" or as "int8" with one scale per row. The instruction set avx512_bf16 multiplies
    these with ``x`` rounded to bfloat16, others with ``x`` as it is; sums are float32.
    ``tiles`` lets the instruction set amx multiply them in its tile registers: for many rows, and in another order.
    ``out`` may be ``residual``. ``"quick_gelu"`` is x * sigmoid(1.702 x), ``"gelu"`` the exact one with erf.
    """
    if not isinstance(weight, PackedWeight):
        weight = PackedWeight(weight, bias)
    elif bias is not None:
        raise ValueError("bias: a PackedWeight holds its own bias")
    return _linear(x, weight, residual, activation, out, isa, pool, tiles)


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    eps: float = 1e-5,
    out: NDArray[np.float32] | None = None,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> NDArray[np.float32]:
    """``(x - mean) / sqrt(var + eps) * gamma + beta`` over rows: x (R, D), gamma (D,), beta (D,) -> (R, D).

    Mean and variance are taken in two passes over the row. The rows of ``x`` may be strided; ``out``
    may be ``x``.
    """
    return _layer_norm(x, gamma, beta, eps, out, isa, pool)


def add_layer_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    eps: float = 1e-5,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> NDArray[np.float32]:
    """``layer_norm(x + bias + residual)``: residual (R, D), bias (D,). In the engine ``linear`` has added them."""
    for added in (bias, residual):
        x = x if added is None else np.add(x, added)
    return layer_norm(x, gamma, beta, eps=eps, isa=isa, pool=pool)


def bias_gelu(
    x: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    out: NDArray[np.float32] | None = None,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> NDArray[np.float32]:
    """``gelu(x + bias)`` with erf: x (R, D), bias (D,) -> (R, D). ``out`` may be ``x``; ``linear`` has it built in."""
    return _bias_activation(x, bias, "gelu", out, isa, pool)


def bias_quick_gelu(
    x: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    out: NDArray[np.float32] | None = None,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> NDArray[np.float32]:
    """``y * sigmoid(1.702 y)`` of ``y = x + bias``, as ``bias_gelu``."""
    return _bias_activation(x, bias, "quick_gelu", out, isa, pool)


def embed_layer_norm(
    ids: ArrayLike,
    position_ids: ArrayLike,
    words: NDArray[np.float32],
    positions: NDArray[np.float32],
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    eps: float = 1e-12,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> NDArray[np.float32]:
    """``layer_norm(words[ids] + positions[position_ids])``: ids (R,), tables (V, D) and (P, D) -> (R, D).

    Raises ValueError for an id outside its table.
    """
    rows = []
    for name, index, table in (("ids", ids, words), ("position_ids", position_ids, positions)):
        index = np.asarray(index)
        if index.size and not (index.min() >= 0 and index.max() < len(table)):
            raise ValueError(f"{name}: expected 0 to {len(table) - 1}, got {index.min()} to {index.max()}")
        rows.append(table[index])
    return layer_norm(rows[0] + rows[1], gamma, beta, eps=eps, isa=isa, pool=pool)


class Selection(NamedTuple):
    """What ``head_select`` chose."""

    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    drawn: NDArray[np.int32] | None
    logits: NDArray[np.float32]


def head_select(
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    *,
    choices: int = 1,
    temperature: float = 1.0,
    quantiles: ArrayLike | None = None,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> Selection:
    """The likeliest tokens of each row by ``(x @ weight.T + bias) / temperature``.

    Args:
        x: the last hidden states (R, K).
        weight: the head (V, K), as in ``linear``.
        bias: (V,).
        choices: how many tokens per row.
        temperature: what logits are divided by, positive.
        quantiles: (R,) in [0, 1): also draw one token per row, the first with which the sum of probabilities, in order
            of token, exceeds the row's quantile.

    Returns:
        int32 tokens and float32 log-probabilities (R, choices) in descending order, of equal ones the lower token
        first; drawn tokens (R,); logits (R, V).

    Raises:
        ValueError: also for logits that are NaN or infinite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    logits = linear(x, weight, bias, isa=isa, pool=pool) / np.float32(temperature)
    if not 1 <= choices <= logits.shape[1]:
        raise ValueError(f"choices: expected 1 to {logits.shape[1]}, got {choices}")
    if not np.isfinite(logits).all():
        raise ValueError("logits: NaN or infinite")
    tokens = np.argsort(-logits, axis=1, kind="stable")[:, :choices]
    scores = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    weights = np.exp(scores)
    totals = weights.sum(axis=1, keepdims=True)
    log_probs = np.take_along_axis(scores, tokens, 1) - np.log(totals)
    drawn = None
    if quantiles is not None:
        targets = np.asarray(quantiles, np.float64)[:, None] * totals
        drawn = (weights.cumsum(axis=1) <= targets).sum(axis=1).clip(max=logits.shape[1] - 1).astype(np.int32)
    return Selection(tokens.astype(np.int32), log_probs.astype(np.float32), drawn, logits)


def prefix_attention(
    q: ArrayLike,
    k: ArrayLike | PackedPrefix,
    v: ArrayLike | None = None,
    *,
    k_text: ArrayLike | None = None,
    v_text: ArrayLike | None = None,
    slots: Sequence[Sequence[int]] | None = None,
    scale: float | None = None,
    out: NDArray[np.float32] | None = None,
    isa: str = "",
    pool: ThreadPool | None = None,
) -> NDArray[np.float32]:
    """Attention of rows that share a prefix and see some text each, one softmax over both.

    Args:
        q: queries (R, H, head_dim), one row per beam, question or image token.
        k: keys of the prefix (H, P, head_dim); P may be 0. They are rearranged for the kernel at every call, unless
            they come as a ``PackedPrefix(k, v)``, which does so once and brings the values along.
        v: values of the prefix (H, P, head_dim).
        k_text: keys of a store of S text tokens (S, H, head_dim), which rows read through ``slots``.
        v_text: values of that store (S, H, head_dim).
        slots: for each row the numbers of the text tokens it sees; what no row names is never read.
        scale: factor of the scores, positive; default ``head_dim ** -0.5``.

    Returns:
        (R, H, head_dim); zeros for a row that sees no key at all.
    """
    if not isinstance(k, PackedPrefix):
        k = PackedPrefix(k, v)
    elif v is not None:
        raise ValueError("v: a PackedPrefix holds its own values")
    if (k_text is None) != (v_text is None):
        raise ValueError("k_text, v_text: expected both or neither")
    heads, _, head_dim = k.shape
    if k_text is None:
        k_text = v_text = np.empty((0, heads, head_dim), np.float32)
    if slots is None:
        slots = [[]] * (np.shape(q)[0] if np.ndim(q) else 0)
    if scale is None:
        scale = max(head_dim, 1) ** -0.5
    return _prefix_attention(q, k, k_text, v_text, slots, scale, out, isa, pool)
