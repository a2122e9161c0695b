"""A run as text and as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from gitfast.bench.case import OURS
from gitfast.bench.run import Report, Row
from gitfast.bench.spread import Spread
from gitfast.errors import GitfastError

_COLUMNS = (
    f"{'kernel':<16} {'rows':<21} {'shape':<33} {'dtype':<8} {'cache':<5} {'us':>9} {'(quartiles)':<19}"
    f" {'GB/s':>6} {'TFLOP/s':>8} {'share of':<12}  times as fast as (quartiles)"
)


class OnMachine(Protocol):
    """A report of any benchmark."""

    device: str
    machine: dict[str, Any]


def where(report: OnMachine) -> str:
    """Return the GPU's name, or the threads and the CPU's name."""
    machine = report.machine
    if report.device == "cuda":
        return str(machine["gpu"]["name"])
    threads = machine["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''} of {machine['cpu']}, {machine['isa']}"


def headline(report: Report) -> Iterator[str]:
    yield f"{where(report)}; medians of {report.rounds} rounds"
    yield f"measured ceilings: {report.ceilings.describe()}"
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
    """Say how often ours is ahead of the fastest peer, and list every loss."""
    compared = [(min(row.ratio.items(), key=lambda peer: peer[1].median), row) for row in report.rows if row.ratio]
    lost = sorted(
        ((ratio.median, name, row) for (name, ratio), row in compared if ratio.median < 1), key=lambda x: x[0]
    )
    yield f"{len(report.rows)} rows, {len(report.failed)} cases failed and were not timed"
    if compared:
        yield f"ahead of the fastest peer in {len(compared) - len(lost)} rows, behind in {len(lost)}"
    for ratio, name, row in lost:
        yield f"  {ratio:.2f} beside {name}: {row.kernel}, {row.shape}, {row.dtype}, {row.cache}"


def as_json(report: Any) -> str:
    return json.dumps(dataclasses.asdict(report), indent=1)


class ReportFile:
    """The JSON file of a run: one document, or a line per row behind those of other runs (``.jsonl``).

    It is written after each comparison, so that a run that is stopped keeps what it has.
    """

    def __init__(self, path: Path) -> None:
        check_writable("json", path)
        self._path, self._as_lines = path, path.suffix == ".jsonl"
        self._begun = False
        self._left_out: set[str] = set()

    def save(self, report: Any, new: Iterable[Any]) -> None:
        """Save the report. ``new``: the rows and failures since the last time.

        Raises:
            GitfastError: it cannot be written, as on a full disk.
        """
        with naming("json", self._path):
            self._save(report, new)

    def _save(self, report: Any, new: Iterable[Any]) -> None:
        if not self._as_lines:
            self._path.write_text(as_json(report) + "\n", encoding="utf-8")
            return
        lines = [{"kind": type(row).__name__, **dataclasses.asdict(row)} for row in new]
        if not self._begun:
            self._begun = True
            about = {key: value for key, value in dataclasses.asdict(report).items() if not isinstance(value, list)}
            lines.insert(0, {"kind": "Run", "arguments": sys.argv[1:], **about})
            self._left_out.update(report.not_measured)
        lines += [
            {"kind": "NotMeasured", "name": name, "problem": problem}
            for name, problem in report.not_measured.items()
            if name not in self._left_out
        ]
        self._left_out.update(report.not_measured)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def check_writable(argument: str, path: Path, *, devices: bool = False) -> None:
    """Raise GitfastError naming the argument before any work is done. An existing file keeps its content."""
    existed = path.exists()
    # A pipe would wait for its reader, and a device, as a full one, may say what is wrong at the end only.
    if path.is_fifo() or (existed and not devices and not (path.is_file() or path.is_dir())):
        raise GitfastError(f"{argument}: cannot write {path}: not a regular file")
    with naming(argument, path):
        path.open("ab").close()
    if not existed:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def naming(argument: str, path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the argument and its file."""
    try:
        yield
    except OSError as error:
        raise GitfastError(f"{argument}: cannot write {path}: {error.strerror or error}") from None
