"""A run as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from gitfast.bench.case import OURS
from gitfast.bench.run import Report, Row, Spread

_COLUMNS = (
    f"{'kernel':<16} {'rows':<21} {'shape':<33} {'dtype':<8} {'cache':<5} {'us':>9} {'(quartiles)':<19}"
    f" {'GB/s':>6} {'TFLOP/s':>8} {'share of':<12}  times as fast as (quartiles)"
)


def where(report: Report) -> str:
    """The GPU, or the threads and the processor."""
    machine = report.machine
    if report.device == "cuda":
        return str(machine["gpu"]["name"])
    threads = machine["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''} of {machine['cpu']}, {machine['isa']}"


def headline(report: Report) -> Iterator[str]:
    ceilings = report.ceilings
    yield f"{where(report)}; medians of {report.rounds} rounds"
    products = ", ".join(f"{d} {g.tflop_per_s:.3g} TFLOP/s ({g.by})" for d, g in ceilings.gemm.items())
    yield f"measured ceilings: {ceilings.stream} {ceilings.gb_per_s:.1f} GB/s; largest product: {products}"
    for peer, why in report.not_measured.items():
        yield f"not measured: {peer}: {why}"
    yield "a ratio below 1 is a loss; a share above 1 comes out of the caches, or of a machine that was busier before"
    yield _COLUMNS


def line(row: Row) -> str:
    ours = row.microseconds[OURS]
    peers = ", ".join(f"{name} {_ratio(ratio)}" for name, ratio in row.ratio.items())
    return (
        f"{row.kernel:<16} {row.model:<21} {row.shape:<33} {row.dtype:<8} {row.cache:<5}"
        f" {ours.median:9.1f} {f'({ours.q1:.1f}-{ours.q3:.1f})':<19} {row.gb_per_s:6.1f} {row.tflop_per_s:8.4f}"
        f" {row.share:4.2f} {row.bound:<7}  {peers or '-'}"
    )


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.q1:.2f}-{ratio.q3:.2f})"


def summary(report: Report) -> Iterator[str]:
    """How often ours is ahead of the fastest peer, and every loss."""
    compared = [(min(row.ratio.items(), key=lambda peer: peer[1].median), row) for row in report.rows if row.ratio]
    lost = sorted(
        ((ratio.median, name, row) for (name, ratio), row in compared if ratio.median < 1), key=lambda x: x[0]
    )
    yield f"{len(report.rows)} rows, {len(report.failed)} cases failed and were not timed"
    if compared:
        yield f"ahead of the fastest peer in {len(compared) - len(lost)} rows, behind in {len(lost)}"
    for ratio, name, row in lost:
        yield f"  {ratio:.2f} beside {name}: {row.kernel}, {row.shape}, {row.dtype}, {row.cache}"


def as_json(report: Report) -> str:
    return json.dumps(dataclasses.asdict(report), indent=1)
