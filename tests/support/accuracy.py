"""Accuracy of float32 kernels: at most twice as far from the truth as plain numpy in float32."""

from __future__ import annotations

import numpy as np

EPS = float(np.finfo(np.float32).eps)
# Instruction sets that multiply bfloat16 as such, and so round what it is multiplied with.
BFLOAT16_ISAS = ("avx512_bf16", "avx512_bf16_vnni", "amx", "neon_bf16")


def assert_as_good_as_numpy(ours: np.ndarray, plain: np.ndarray, truth: np.ndarray, scale: float) -> None:
    """``ours`` against ``truth`` (float64), within twice the error of ``plain`` (numpy, float32) and 4 eps of scale.

    ``scale`` is the size of the terms that were summed: where they cancel, errors are relative to them.
    """
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all(), "a poisoned or missing value reached the result"
    allowed = 2 * np.abs(plain - truth).max(initial=0) + 4 * EPS * scale
    worst = np.abs(ours - truth).max(initial=0)
    assert worst <= allowed, f"error {worst:.3g}, allowed {allowed:.3g}"


def rounding_of_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the standard deviation (M, N) of the rounding errors in x (M, K) W^T, W (N, K), in chains of 256 terms.

    Rounding a partial sum s errs by at most eps |s| / 2, evenly, so by eps |s| / sqrt(12); what the chains come to is
    added up and rounded too. The sums themselves are taken, since one that strays far errs by several times the usual:
    errors of all sums have exponential tails, those of one have the tails of a normal distribution.
    """
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    total, squares = np.zeros((2, len(x), len(weight)), np.float32)
    for begin in range(0, x.shape[1], 256):
        chain = np.zeros_like(total)
        for k in range(begin, min(begin + 256, x.shape[1])):
            product = np.multiply.outer(x[:, k], weight[:, k])
            chain += product
            squares += chain * chain + product * product  # the product is rounded too where it is not fused
        total += chain
        squares += total * total
    return EPS * np.sqrt(squares / 12)


def assert_right_up_to_rounding(y: np.ndarray, truth: np.ndarray, x: np.ndarray, weight: np.ndarray) -> None:
    """``y`` against ``truth`` (float64): 6 standard deviations of what rounding adds to x W^T, and 4 eps for the rest.

    Roundings err by less than is taken for them, 0.74 of it on average: 6 are 8 of what happens. Of 50 million sums the
    worst was at 3.6.
    """
    assert np.isfinite(y).all(), "a poisoned or missing value reached the result"
    error = np.abs(y - truth) - 4 * EPS * (1 + np.abs(truth))
    allowed = 6 * rounding_of_product(x, weight)
    worst = (error - allowed).argmax() if error.size else None
    assert worst is None or error.flat[worst] <= allowed.flat[worst], (
        f"error {error.flat[worst]:.3g}, allowed {allowed.flat[worst]:.3g}"
    )


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
