"""Run cases: every side is checked against float64, and those that pass are timed in turns."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from gitfast.bench.case import OURS, Case, GateError, Operands, check
from gitfast.bench.ceilings import Ceilings
from gitfast.bench.spread import Spread, in_turns

T = TypeVar("T")


class Clock(Protocol):
    """The timing of one device. ``cache_bytes``: bytes that stay in its caches from call to call."""

    cache_bytes: int

    def ceilings(self, rounds: int) -> Ceilings: ...
    def copies(self, case: Case) -> int: ...
    def prepare(self, name: str, copies: Sequence[Operands], cache: str) -> Callable[[], float]: ...


@dataclass(frozen=True)
class Bench:
    """A device that is ready to be timed, and the cases asked for."""

    device: str
    machine: dict[str, Any]
    clock: Clock
    cases: Iterable[Case]
    not_measured: dict[str, str]
    torch: Any | None


@dataclass(frozen=True)
class Row:
    """One case with cold or warm caches. ``ratio`` is a peer's time over ours, taken round by round."""

    kernel: str
    model: str
    shape: str
    dtype: str
    cache: str
    flops: float
    bytes: float
    microseconds: dict[str, Spread]
    ratio: dict[str, Spread]
    gb_per_s: float
    tflop_per_s: float
    share: float  # relative to the ceiling that bounds the case
    bound: str  # "memory" or "compute"
    error: dict[str, float]  # in units of what is allowed


@dataclass(frozen=True)
class Failure:
    """A case that was not timed, because a side of it computes something else."""

    case: str
    problem: str


@dataclass
class Report:
    """A run: the machine, and the results so far."""

    device: str
    machine: dict[str, Any]
    rounds: int
    ceilings: Ceilings
    not_measured: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def start(bench: Bench, rounds: int) -> Report:
    """Start a report that holds only the ceilings."""
    with _inference(bench.torch):
        ceilings = bench.clock.ceilings(rounds)
    return Report(bench.device, bench.machine, rounds, ceilings, dict(bench.not_measured))


def run_cases(bench: Bench, report: Report) -> Iterator[list[Row] | Failure]:
    """Run one case after the other; yield each result once it is in ``report``."""
    with _inference(bench.torch):
        for case in bench.cases:
            try:
                rows = run_case(case, bench.clock, report)
            except GateError as error:
                failure = Failure(case.name, str(error))
                report.failed.append(failure)
                yield failure
            else:
                report.rows += rows
                yield rows


def run_case(case: Case, clock: Clock, report: Report) -> list[Row]:
    """Time a case cold and, if its operands stay in the caches, warm. Raises GateError before anything is timed."""
    first = case.build()
    truth = first.expected()
    errors = _of_sides(case, first.sides, report, lambda name: check(first, name, truth))
    copies = [first] + [case.build() for _ in range(clock.copies(case) - 1)]
    caches = {"cold": copies} | ({"warm": copies[:1]} if case.bytes <= clock.cache_bytes else {})
    rows = []
    for cache, used in caches.items():
        sides = _of_sides(case, errors, report, lambda name: clock.prepare(name, used, cache))  # noqa: B023
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for name in in_turns(sides, report.rounds):
            samples[name].append(sides[name]())
        rows.append(_row(case, cache, samples, errors, report.ceilings))
    return rows


def _of_sides(case: Case, names: Iterable[str], report: Report, get: Callable[[str], T]) -> dict[str, T]:
    """Call ``get`` for each side. A peer that does not take this case is left out; the report says why."""
    found = {}
    for name in names:
        try:
            found[name] = get(name)
        except Exception as error:  # whatever a peer throws
            if name == OURS or isinstance(error, GateError):
                raise
            report.not_measured[f"{name}: {case.name}"] = f"{type(error).__name__}: {error}".split("\n")[0]
    return found


def _row(case: Case, cache: str, samples: dict[str, list[float]], errors: dict[str, float], ceilings: Ceilings) -> Row:
    ours = samples[OURS]
    seconds = statistics.median(ours)
    least, bound = ceilings.least_seconds(case.flops, case.bytes, case.dtype)
    return Row(
        case.kernel,
        case.model,
        case.shape,
        case.dtype,
        cache,
        case.flops,
        case.bytes,
        microseconds={name: Spread.of([1e6 * s for s in side]) for name, side in samples.items()},
        ratio={name: Spread.of_ratios(side, ours) for name, side in samples.items() if name != OURS},
        gb_per_s=case.bytes / seconds / 1e9,
        tflop_per_s=case.flops / seconds / 1e12,
        share=least / seconds,
        bound=bound,
        error={name: errors[name] for name in samples},
    )


def _inference(torch: Any | None) -> contextlib.AbstractContextManager[Any]:
    return torch.inference_mode() if torch else contextlib.nullcontext()
