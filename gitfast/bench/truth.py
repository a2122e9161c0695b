"""What the kernels compute, in float64 with numpy, and operands that every dtype holds exactly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def activation(name: str, x: Doubles) -> Doubles:
    if name == "gelu":
        gelu: Doubles = x / 2 * _erfc(-x / math.sqrt(2))
        return gelu
    return x / (1 + np.exp(-1.702 * x)) if name == "quick_gelu" else x


def layer_norm(x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, eps: float) -> Doubles:
    x, gamma, beta = (np.asarray(a, np.float64) for a in (x, gamma, beta))
    centred = x - x.mean(-1, keepdims=True)
    norm: Doubles = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * gamma + beta
    return norm


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike) -> Doubles:
    """x (M, K), weight (N, K), bias (N,) -> (M, N)."""
    x, weight, bias = (np.asarray(a, np.float64) for a in (x, weight, bias))
    return x @ weight.T + bias


def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike) -> Doubles:
    """One row: q (H, head_dim), k and v (H, tokens, head_dim) -> (H, head_dim)."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    scores = np.einsum("hd,htd->ht", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("ht,htd->hd", weights / weights.sum(-1, keepdims=True), v)


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Floats:
    """Random float32 values; those of a narrower dtype are bfloat16 exactly."""
    values = rng.standard_normal(shape, np.float32)
    return values if dtype == "float32" else to_bfloat16(values)


def to_bfloat16(x: Floats) -> Floats:
    """Rounded to the nearest, ties to even; finite values."""
    bits = x.view(np.uint32)
    rounded: Floats = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def weights(rng: np.random.Generator, n: int, k: int, dtype: str) -> Floats:
    """(N, K): values that packing as ``dtype`` keeps."""
    if dtype != "int8":
        return normal(rng, n, k, dtype=dtype)
    whole: Floats = rng.integers(-127, 128, (n, k)).astype(np.float32)
    whole[:, 0] = 127  # the scale of a row is then a power of two
    return whole / np.float32(64)
