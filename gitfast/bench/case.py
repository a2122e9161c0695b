"""One kernel at one shape: its sides, and their check against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OURS = "gitfast"

# Allowed difference of a side from float64, relative to a value and the root mean square of all: sums of thousands of
# float32 products; of products with whole numbers of 14 or 8 bits, in units that the largest of 256 values decides; a
# result rounded to bfloat16, and factors of it; steps between rounded too, by 2^-9 of values of up to 8: scores before
# a softmax, sums before a norm.
ALLOWED = {
    "float32": 2e-5,
    "14 bits": 2.0**-11,
    "8 bits": 2.0**-4,
    "bfloat16": 2.0**-6,
    "bfloat16 steps": 2.0**-3,
}
MOST_ROWS_CHECKED = 256


@dataclass(frozen=True)
class Side:
    """One implementation of a kernel. ``rounds_to`` is in ``ALLOWED``; ``arrange`` orders the result as the truth."""

    call: Callable[[], Any]
    rounds_to: str = "float32"
    arrange: Callable[[Any], Any] = lambda result: result


@dataclass(frozen=True)
class Operands:
    """Inputs in memory of their own, and the sides that compute on them. ``truth`` gives result rows in float64."""

    sides: Mapping[str, Side]
    num_rows: int
    truth: Callable[[NDArray[np.int64]], NDArray[np.floating]]

    def expected(self) -> NDArray[np.floating]:
        """Return the expected values of the rows that are checked."""
        return self.truth(checked_rows(self.num_rows))


@dataclass(frozen=True)
class Case:
    """A kernel at a shape. ``flops`` and ``bytes`` are the least work of any kernel; ``build`` makes new operands."""

    kernel: str
    model: str
    shape: str
    dtype: str
    flops: float
    bytes: float
    build: Callable[[], Operands]

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.model}, {self.shape}, {self.dtype}"


class GateError(Exception):
    """A side whose result differs from that of float64."""


def check(operands: Operands, name: str, truth: NDArray[np.floating]) -> float:
    """Return a side's error against ``truth``, in units of the allowed error. Raises GateError above 1.

    The whole result must be finite. With many rows, a sample is compared, always including the first and last.
    """
    side = operands.sides[name]
    result = side.arrange(side.call())
    if tuple(result.shape) != (operands.num_rows, *truth.shape[1:]):
        expected = (operands.num_rows, *truth.shape[1:])
        raise GateError(f"{name} gives shape {tuple(result.shape)}, expected {expected}")
    finite = np.isfinite(result) if isinstance(result, np.ndarray) else result.isfinite()
    if not finite.all():
        raise GateError(f"{name} gives values that are not finite")
    allowed = ALLOWED[side.rounds_to] * (np.abs(truth) + np.sqrt(np.square(truth).mean()))
    error = float((np.abs(to_float64(result[checked_rows(operands.num_rows)]) - truth) / allowed).max())
    if error > 1:
        raise GateError(f"{name} is {error:.3g} times as far from float64 as {side.rounds_to} may be")
    return error


def checked_rows(num_rows: int) -> NDArray[np.int64]:
    if num_rows <= MOST_ROWS_CHECKED:
        return np.arange(num_rows)
    between = np.random.default_rng(0).choice(num_rows - 2, MOST_ROWS_CHECKED - 2, replace=False) + 1
    return np.sort(np.concatenate([[0], between, [num_rows - 1]]))


def to_float64(result: Any) -> NDArray[np.float64]:
    """Convert a numpy array, or a torch tensor on any device."""
    if isinstance(result, np.ndarray):
        return result.astype(np.float64)
    double: NDArray[np.float64] = result.double().cpu().numpy()
    return double
