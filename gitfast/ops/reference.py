"""The kernels in plain numpy, in the dtype of the arguments: float64 gives the truth they are held to.

Arguments are those of :mod:`gitfast.ops.cpu` and :mod:`gitfast.ops.cuda`, arrays or torch tensors in host memory;
weights are plain (N, K) arrays. Results are arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def quick_gelu(x: ArrayLike) -> Floats:
    """Compute x * sigmoid(1.702 x)."""
    x = np.asarray(x)
    with np.errstate(over="ignore"):  # exp of a large number: the result is 0
        y: Floats = x / (1 + np.exp(-1.702 * x))
    return y


def gelu(x: ArrayLike) -> Floats:
    """Compute x * Phi(x) by erfc: 1 + erf would lose the digits of its tail, in float64 too."""
    x = np.asarray(x)
    y: Floats = x / 2 * _erfc(-x / math.sqrt(2)).astype(x.dtype)
    return y


ACTIVATIONS: dict[str, Callable[[ArrayLike], Floats]] = {"none": np.asarray, "gelu": gelu, "quick_gelu": quick_gelu}


def _plus(x: ArrayLike, *terms: ArrayLike | None) -> Floats:
    total = np.asarray(x)
    for term in terms:
        total = total if term is None else total + np.asarray(term)
    return total


def layer_norm(x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, *, eps: float = 1e-5) -> Floats:
    """Compute ``LayerNorm(x)`` over rows (R, D)."""
    x, gamma, beta = map(np.asarray, (x, gamma, beta))
    centred = x - x.mean(-1, keepdims=True)
    norm: Floats = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + x.dtype.type(eps)) * gamma + beta
    return norm


def add_layer_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    eps: float = 1e-5,
) -> Floats:
    """Compute ``LayerNorm(x + bias + residual)`` over rows (R, D)."""
    return layer_norm(_plus(x, bias, residual), gamma, beta, eps=eps)


def bias_gelu(x: ArrayLike, bias: ArrayLike | None = None) -> Floats:
    """Compute ``gelu(x + bias)``: (R, D)."""
    return gelu(_plus(x, bias))


def bias_quick_gelu(x: ArrayLike, bias: ArrayLike | None = None) -> Floats:
    """Compute ``quick_gelu(x + bias)``: (R, D)."""
    return quick_gelu(_plus(x, bias))


def embed_layer_norm(
    ids: ArrayLike,
    position_ids: ArrayLike,
    words: ArrayLike,
    positions: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    eps: float = 1e-12,
) -> Floats:
    """Compute ``LayerNorm(words[ids] + positions[position_ids])``, (R, D); NaN in rows with an id outside its table."""

    def rows(table: ArrayLike, index: ArrayLike) -> Floats:
        table, index = np.asarray(table), np.asarray(index)
        exists = (index >= 0) & (index < len(table))
        return np.where(exists[:, None], table[index.clip(0, len(table) - 1)], table.dtype.type(np.nan))

    return layer_norm(rows(words, ids) + rows(positions, position_ids), gamma, beta, eps=eps)


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str = "none",
    residual: ArrayLike | None = None,
) -> Floats:
    """Compute ``activation(x @ weight.T + bias) + residual``: (R, N)."""
    sums = _plus(np.asarray(x) @ np.asarray(weight).T, bias)
    return _plus(ACTIVATIONS[activation](sums), residual)


def norm_linear(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "none",
) -> tuple[Floats, Floats]:
    """Compute ``y = LayerNorm(x)``, (R, K), and ``activation(y @ weight.T + bias)``, (R, N)."""
    y = layer_norm(x, gamma, beta, eps=eps)
    return y, linear(y, weight, bias, activation=activation)


def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None) -> Floats:
    """Attend from one row q (H, head_dim) to k and v (H, tokens, head_dim) -> (H, head_dim); zero without a token."""
    q, k, v = map(np.asarray, (q, k, v))
    if not k.shape[1]:
        return np.zeros_like(q)
    scores = (k @ q[:, :, None])[:, :, 0] * q.dtype.type(scale or q.shape[1] ** -0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed: Floats = (weights[:, None] @ v)[:, 0] / weights.sum(-1, keepdims=True)
    return mixed


def prefix_attention(
    q: ArrayLike,
    k_prefix: ArrayLike,
    v_prefix: ArrayLike,
    images: Sequence[int],
    *,
    k_text: ArrayLike | None = None,
    v_text: ArrayLike | None = None,
    slots: Sequence[Sequence[int]] | None = None,
    scale: float | None = None,
) -> Floats:
    """Attend from rows (R, H, head_dim), row r to the prefix of ``images[r]`` and the text tokens ``slots[r]``."""
    q, k_prefix, v_prefix = map(np.asarray, (q, k_prefix, v_prefix))
    out = np.zeros_like(q)
    for row, image in enumerate(images):
        k, v = k_prefix[image], v_prefix[image]
        if slots is not None and k_text is not None and v_text is not None:
            named = np.asarray(slots[row], dtype=np.intp)
            k = np.concatenate([k, np.asarray(k_text)[named].swapaxes(0, 1)], 1)
            v = np.concatenate([v, np.asarray(v_text)[named].swapaxes(0, 1)], 1)
        out[row] = attention(q[row], k, v, scale=scale)
    return out


def log_softmax(logits: ArrayLike) -> Floats:
    """Compute log-softmax over the last axis."""
    logits = np.asarray(logits)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probs


def head_select(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    choices: int = 1,
    temperature: float = 1.0,
    quantiles: ArrayLike | None = None,
) -> tuple[NDArray[np.intp], Floats, NDArray[np.intp] | None, Floats]:
    """Return tokens and log-probabilities (R, choices), drawn tokens (R,) at ``quantiles`` (R,), logits (R, V).

    Descending, of equal ones the lower token first; a token is drawn where the sum of probabilities up to and with it
    first exceeds the quantile.
    """
    logits = linear(x, weight, bias) / temperature
    log_probs = log_softmax(logits)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :choices]
    drawn = None
    if quantiles is not None:
        shares = np.exp(log_probs)
        reached = (shares.cumsum(1) > np.asarray(quantiles)[:, None]) & (shares > 0)
        last = shares.shape[1] - 1 - (shares > 0)[:, ::-1].argmax(1)  # where rounding keeps the sum below
        drawn = np.where(reached.any(1), reached.argmax(1), last)
    return order, np.take_along_axis(log_probs, order, 1), drawn, logits
