"""Samples of rounds in turns, and their statistics."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles over the rounds."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)

    @classmethod
    def of_ratios(cls, above: Iterable[float], below: Iterable[float]) -> Spread:
        """Compute the ratios round by round, so that noise in a round slows both."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])


def in_turns(names: Iterable[T], rounds: int) -> Iterator[T]:
    """Run all names once a round, forwards and backwards, so that noise meets all alike."""
    order = list(names)
    for i in range(rounds):
        yield from order if i % 2 else reversed(order)
