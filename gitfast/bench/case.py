"""One kernel at one shape: its sides, and whether they compute the same as float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OURS = "gitfast"

# What a side may differ from float64, relative to a value and the root mean square of all: sums of thousands of float32
# products; a result rounded to bfloat16, and factors of it; steps between rounded too, by 2^-9 of values of up to 8:
# scores before a softmax, sums before a norm.
ALLOWED = {"float32": 2e-5, "bfloat16": 2.0**-6, "bfloat16 steps": 2.0**-3}
MOST_ROWS_CHECKED = 256


@dataclass(frozen=True)
class Side:
    """One way to compute. ``rounds_to`` is in ``ALLOWED``; ``arrange`` puts the result in the order of the truth."""

    call: Callable[[], Any]
    rounds_to: str = "float32"
    arrange: Callable[[Any], Any] = lambda result: result


@dataclass(frozen=True)
class Operands:
    """Memory of its own, and what computes on it. ``truth`` gives some rows of the result in float64."""

    sides: Mapping[str, Side]
    num_rows: int
    truth: Callable[[NDArray[np.int64]], NDArray[np.floating]]

    def expected(self) -> NDArray[np.floating]:
        """The rows that are checked."""
        return self.truth(checked_rows(self.num_rows))


@dataclass(frozen=True)
class Case:
    """``flops`` and ``bytes`` are what any kernel must compute and move once; ``build`` makes operands anew."""

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
    """A side computes something else than float64 does."""


def check(operands: Operands, name: str, truth: NDArray[np.floating]) -> float:
    """The error of a side in units of what is allowed; ``truth`` is what is expected. Raises GateError above 1.

    All of the result must be finite. Of many rows some are compared, always the first and the last.
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
    """Of a numpy array, or of a torch tensor anywhere."""
    if isinstance(result, np.ndarray):
        return result.astype(np.float64)
    double: NDArray[np.float64] = result.double().cpu().numpy()
    return double
