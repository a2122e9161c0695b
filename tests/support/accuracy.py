"""Accuracy of float32 kernels: at most twice as far from the truth as plain numpy in float32."""

from __future__ import annotations

import numpy as np

EPS = float(np.finfo(np.float32).eps)


def assert_as_good_as_numpy(ours: np.ndarray, plain: np.ndarray, truth: np.ndarray, scale: float) -> None:
    """``ours`` against ``truth`` (float64), within twice the error of ``plain`` (numpy, float32) and 4 eps of scale.

    ``scale`` is the size of the terms that were summed: where they cancel, errors are relative to them.
    """
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all(), "a poisoned or missing value reached the result"
    allowed = 2 * np.abs(plain - truth).max(initial=0) + 4 * EPS * scale
    worst = np.abs(ours - truth).max(initial=0)
    assert worst <= allowed, f"error {worst:.3g}, allowed {allowed:.3g}"


def poisoned(*shape: int) -> np.ndarray:
    """An output that betrays every element left unwritten."""
    return np.full(shape, np.nan, np.float32)


def size_of_sum(terms: int) -> float:
    """Scale of a sum of products of normal numbers, added up in chains of 256: its size, or what rounding may lose.

    One chain of c additions has partial sums of up to sqrt(c), so roundings of eps sqrt(c) that add up at random to
    eps c; b such chains have sqrt(b) times that.
    """
    chain = min(terms, 256)
    return 1 + max(terms**0.5, chain / 4 * (terms / chain) ** 0.5)
