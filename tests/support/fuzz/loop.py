"""The loop: mutate a seed, read it, and stop at an error of another kind, much work, much memory, or code that runs.

Everything happens in this process, so that an execution costs what the reader costs. What ends the process is found
by the input that lies in a ``Keeper``'s file then.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

MAX_INPUT_BYTES = 200_000
MAX_CPU_S = 20.0  # of one execution: a bound on work, far from what a busy machine adds
MAX_GROWTH_BYTES = 512 << 20  # of the process over a run; readers that refuse what is large stay far below
_FORBIDDEN = ("exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
_FORBIDDEN += ("socket.connect", "socket.getaddrinfo", "shutil.copyfile", "marshal.loads")

Mutation = Callable[[bytes, random.Random], bytes]


class QuickRandom(random.Random):
    """Random numbers for mutations: as even as a float makes them, at half the cost."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        first, count = (0, start) if stop is None else (start, stop - start)
        return first + int(self.random() * count)

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[int(self.random() * len(seq))]


class TooMuchWork(BaseException):
    """An execution took ``MAX_CPU_S``. No ``Exception``, so that no reader takes it for a fault of the file."""


class Finding(AssertionError):
    """An input that broke a promise, as ``data``."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


@dataclass(frozen=True)
class Target:
    """A reader that is ready to be tried.

    Attributes:
        read: Reads one input.
        seeds: Small inputs, most of which are accepted.
        expected: The errors that refuse an input.
        mutations: Mutations of the format, beside those of bytes.
        folder: The only place where files may be opened; None: none may.
        bytes_too: True if bytes are mutated as well, which for JSON mostly makes what is no JSON.
    """

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    expected: type[BaseException] | tuple[type[BaseException], ...]
    mutations: Sequence[Mutation] = ()
    folder: Path | None = None
    bytes_too: bool = True


@dataclass
class Outcome:
    """Counts of one run."""

    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def line(self) -> str:
        rate = self.executions / max(self.seconds, 1e-9)
        return (
            f"{self.executions:>9,} executions, {self.accepted:>9,} accepted, {rate:>8,.0f} a second, slowest "
            f"{self.slowest_s * 1e3:,.1f} ms of CPU, {self.growth_bytes >> 20} MB more memory, "
            f"{len(self.findings)} findings"
        )


class Keeper:
    """The input of the execution in progress, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        size = MAX_INPUT_BYTES + 8
        with open(path, "wb+") as file:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)

    def keep(self, data: bytes) -> None:
        self._memory[: 8 + len(data)] = len(data).to_bytes(8, "little") + data

    @staticmethod
    def kept(path: Path) -> bytes:
        data = path.read_bytes()
        return data[8 : 8 + int.from_bytes(data[:8], "little")]


def fuzz(
    target: Target,
    *,
    executions: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    keeper: Keeper | None = None,
    on_finding: Callable[[Finding], object] | None = None,
    most_findings: int = 10,
    hang_s: int | None = None,
) -> Outcome:
    """Try mutations of the seeds until one of the bounds is reached.

    Args:
        executions, seconds: Bounds of the run; one of them has to be given.
        seed: The inputs depend on it alone.
        on_finding: Told of each; None: the first is raised.
        most_findings: The run ends with so many.
        hang_s: Seconds of CPU after which the system ends the process, when an execution has not come back to Python.

    Raises:
        Finding: see ``on_finding``.
    """
    if executions is None and seconds is None:
        raise ValueError("executions, seconds: expected one of them")
    rng = QuickRandom(seed)
    outcome = Outcome()
    warm_up(target)
    choices = (*target.mutations, *((mutate_bytes,) if target.bytes_too else ()))
    begin, base = time.monotonic(), _reset_peak()
    with bounded() as start_clock:
        while executions is None or outcome.executions < executions:
            outcome.seconds = time.monotonic() - begin
            if seconds is not None and outcome.seconds >= seconds:
                break
            data = rng.choice(target.seeds)
            for _ in range(rng.randrange(1, 5)):
                data = rng.choice(choices)(data, rng)[:MAX_INPUT_BYTES]
            if keeper is not None:
                keeper.keep(data)
            if hang_s is not None:
                _allow_cpu(hang_s)
            start_clock()
            finding = attempt(target, data, outcome)
            growth = _peak() - base
            if finding is None and growth > max(MAX_GROWTH_BYTES, outcome.growth_bytes):
                finding = Finding(f"{growth >> 20} MB more memory", data)
            outcome.growth_bytes = max(outcome.growth_bytes, growth)
            outcome.executions += 1
            if finding is None:
                continue
            if on_finding is None:
                raise finding
            outcome.findings.append(finding)
            on_finding(finding)
            if len(outcome.findings) >= most_findings:
                break
    _allow_cpu(0)
    outcome.seconds = time.monotonic() - begin
    return outcome


def warm_up(target: Target) -> None:
    """Read what is valid, and what is not: what is imported at the first use is imported now."""
    for data in (*target.seeds, b"of no format", b""):
        with contextlib.suppress(*_tuple(target.expected)):
            target.read(data)


def attempt(target: Target, data: bytes, outcome: Outcome) -> Finding | None:
    """Read one input, within ``bounded``; return what is wrong with that."""
    begin = time.process_time()
    _watch.begin(target.folder)
    try:
        target.read(data)
        outcome.accepted += 1
    except target.expected:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        finding = Finding(f"{type(error).__name__}: {str(error)[:300]}", data)
        finding.__cause__ = error
        return finding
    finally:
        _watch.on = False
    outcome.slowest_s = max(outcome.slowest_s, time.process_time() - begin)
    return None


def _tuple(types: type[BaseException] | tuple[type[BaseException], ...]) -> tuple[type[BaseException], ...]:
    return types if isinstance(types, tuple) else (types,)


def mutate_bytes(seed: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert bytes, or write a number of 1, 2, 4 or 8 bytes in either order."""
    if not seed:
        return rng.randbytes(8)
    data = bytearray(seed)
    place = rng.randrange(len(data))
    length = min(len(data) - place, 1 << rng.randrange(9))
    kind = rng.randrange(6)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(_NUMBERS) & (1 << 8 * width) - 1
        data[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length] * rng.randrange(1, 50)
    elif kind == 4:
        data[place : place + length] = rng.randbytes(length)
    else:
        del data[place:]
    return bytes(data)


_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_NUMBERS += (2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


@contextlib.contextmanager
def bounded() -> Iterator[Callable[[], object]]:
    """Raise ``TooMuchWork`` once the process has worked for so long since the last call of what this yields.

    From the main thread alone.
    """
    before = signal.signal(signal.SIGPROF, _end)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _end(number: int, frame: FrameType | None) -> None:
    raise TooMuchWork(f"more than {MAX_CPU_S:g} s of CPU")


def _allow_cpu(seconds: int) -> None:
    """Let the system end the process after so many more seconds of its code at work; 0: however many.

    Counted from now. RLIMIT_CPU counts whole ticks from the start, and of hours beside other work minutes too many.
    """
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # its signal ends the process


def _reset_peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak of memory begins here
    return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class _Watch:
    """Refuse imports, code that runs, processes, connections, and files opened elsewhere, in every thread, while on."""

    folder: str | None = None
    on = False

    def begin(self, folder: Path | None) -> None:
        self.folder, self.on = None if folder is None else f"{folder}{os.sep}", True


_watch = _Watch()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not _watch.on:
        return
    if event in _FORBIDDEN:
        raise RuntimeError(f"{event}: {arguments!r:.200}")
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(arguments[0])
        if ".." in path or not os.path.isabs(path):
            path = os.path.abspath(path)
        if _watch.folder is None or not f"{path}{os.sep}".startswith(_watch.folder):
            raise RuntimeError(f"open: {arguments[0]!r}")


sys.addaudithook(_audit)
