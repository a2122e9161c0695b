"""Operands that every dtype holds exactly, so that sides in different dtypes have one truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Floats:
    """Draw random float32 values; for a narrower dtype they are exact in bfloat16."""
    values = rng.standard_normal(shape, np.float32)
    return values if dtype == "float32" else to_bfloat16(values)


def to_bfloat16(x: Floats) -> Floats:
    """Round to the nearest bfloat16, ties to even; finite values."""
    bits = x.view(np.uint32)
    rounded: Floats = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def weights(rng: np.random.Generator, n: int, k: int, dtype: str) -> Floats:
    """Draw weights (N, K) that packing as ``dtype`` keeps exactly."""
    if dtype not in ("int8", "w8a8"):
        return normal(rng, n, k, dtype=dtype)
    whole: Floats = rng.integers(-127, 128, (n, k)).astype(np.float32)
    whole[:, 0] = 127  # the scale of a row is then a power of two
    return whole / np.float32(64)
