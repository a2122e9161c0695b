"""Operands that every dtype holds exactly, so that sides in different dtypes have one truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Floats:
    """Random float32 values; those of a narrower dtype are bfloat16 exactly."""
    values = rng.standard_normal(shape, np.float32)
    return values if dtype == "float32" else to_bfloat16(values)


def to_bfloat16(x: Floats) -> Floats:
    """Round to the nearest bfloat16, ties to even; finite values."""
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
