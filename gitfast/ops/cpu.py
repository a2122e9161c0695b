"""The CPU kernels as functions on arrays: the parts of the engine, one call each.

Arguments are float32 arrays in CPU memory: numpy, or anything that speaks DLPack (a torch tensor, say). The result is
a new numpy array, or ``out``, a C-contiguous one of the right shape that overlaps no argument. The global interpreter
lock is released while a kernel runs. ``isa`` names the instruction set (``available_isas()``; default ``GITFAST_ISA``
or the best this machine has), ``pool`` the threads to run on (default: the calling thread). A row's result does not
depend, to the bit, on the rows around it or on the number of threads; AVX2 and AVX-512 agree to the bit too.

Every function raises ``ValueError`` naming the argument, what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gitfast._C import PackedPrefix, PackedWeight, ThreadPool
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
) -> NDArray[np.float32]:
    """Compute ``activation(x @ weight.T + bias) + residual``: weight (N, K), x (M, K), bias (N,) -> (M, N).

    ``residual`` is (M, N). The rows of ``x`` may be strided. ``weight`` may also be float16; it is rearranged for the
    kernel at every call, unless it comes as a ``PackedWeight(weight, bias, dtype="float32")``, which does so once,
    brings its bias along, and may store the weight as "bfloat16", or as "int8" or "w8a8" with one scale per row.

    The instruction sets avx512_bf16, avx512_bf16_vnni, amx and neon_bf16 multiply bfloat16 with ``x`` rounded to it,
    others with ``x`` as it is. int8 is multiplied with ``x`` rounded to bfloat16 by avx512_bf16 and amx; with each 256
    values of a row of ``x`` as whole numbers, of 15 bits by all others with avx in their name, of 14 by neon_dot and
    neon_bf16; and with ``x`` as it is by scalar and neon. w8a8 is multiplied with whole numbers of 8 bits by all with
    vnni in their name, avx512_bf16, neon_dot and neon_bf16, and as int8 by others. Sums are float32, those of whole
    numbers over 256 values exact. ``out`` may be ``residual``. ``"quick_gelu"`` is x * sigmoid(1.702 x), ``"gelu"`` the
    exact one with erf.
    """
    if not isinstance(weight, PackedWeight):
        weight = PackedWeight(weight, bias)
    elif bias is not None:
        raise ValueError("bias: a PackedWeight holds its own bias")
    return _linear(x, weight, residual, activation, out, isa, pool)


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
    """Compute ``(x - mean) / sqrt(var + eps) * gamma + beta`` over rows: x (R, D), gamma, beta (D,) -> (R, D).

    Mean and variance are taken in two passes over the row. The rows of ``x`` may be strided; ``out``
    may be ``x``.
    """
    return _layer_norm(x, gamma, beta, eps, out, isa, pool)


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
    """Attend from rows to the prefix they share and to some text each, one softmax over both.

    Args:
        q: queries (R, H, head_dim), one row per beam, question or image token.
        k: keys of the prefix (H, P, head_dim); P may be 0. They are rearranged for the kernel at every call, unless
            they come as a ``PackedPrefix(k, v)``, which does so once and brings the values along.
        v: values of the prefix (H, P, head_dim).
        k_text: keys of a store of S text tokens (S, H, head_dim), which rows read through ``slots``.
        v_text: values of that store (S, H, head_dim).
        slots: for each row the numbers of the text tokens it sees; tokens that no row names are never read.
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
