"""A loop of mutated inputs through one reader: it refuses them with its own errors, in bounded work, and runs nothing.

``GITFAST_FUZZ_EXECUTIONS`` sets how many each target tries, ``GITFAST_FUZZ_SEED`` where the random numbers begin.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXECUTIONS = int(os.environ.get("GITFAST_FUZZ_EXECUTIONS", "100"))
SEED = int(os.environ.get("GITFAST_FUZZ_SEED", "0"))
MAX_INPUT_BYTES = 200_000
MAX_CPU_S = 20.0  # of one execution: a bound on work, far from what a busy machine adds
_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
)

Mutation = Callable[[bytearray, np.random.Generator], bytes]


@dataclass
class Outcome:
    """Counts of one run, for the table of figures."""

    executions: int = 0
    accepted: int = 0
    slowest_s: float = 0.0


def fuzz(
    read: Callable[[bytes], object],
    seeds: Sequence[bytes],
    expected: type[Exception],
    mutations: Sequence[Mutation] = (),
    executions: int = EXECUTIONS,
    folder: Path | None = None,
) -> Outcome:
    """Read mutations of the seeds; an error of another kind, or much work, fails with the input in a file.

    Args:
        mutations: Mutations of the format, beside those of bytes.
        folder: The only place where files may be opened; None: none may.
    """
    rng = np.random.default_rng(SEED)
    outcome = Outcome()
    for seed in (*seeds, b"of no format"):  # what is imported at the first use is imported now
        with contextlib.suppress(expected):
            read(seed)
    for _ in range(executions):
        data = bytes(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 5)):
            choices = (*mutations, mutate_bytes)
            data = choices[rng.integers(len(choices))](bytearray(data), rng)[:MAX_INPUT_BYTES]
        begin = time.process_time()
        try:
            with audited(folder):
                read(data)
            outcome.accepted += 1
        except expected:
            pass
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} from {_kept(data)}") from error
        seconds = time.process_time() - begin
        assert seconds < MAX_CPU_S, f"{seconds:.1f} s of CPU for {_kept(data)}"
        outcome.executions += 1
        outcome.slowest_s = max(outcome.slowest_s, seconds)
    return outcome


def mutate_bytes(data: bytearray, rng: np.random.Generator) -> bytes:
    """Change, cut, repeat or insert bytes, or write a number of 1, 2 or 4 bytes in either order."""
    if not data:
        return bytes(rng.bytes(8))
    place = int(rng.integers(len(data)))
    length = int(min(len(data) - place, 1 << rng.integers(0, 9)))
    kind = rng.integers(6)
    if kind == 0:
        data[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        width = int(rng.choice([1, 2, 4]))
        number = int(rng.choice(_NUMBERS)) & (1 << 8 * width) - 1
        data[place : place + width] = number.to_bytes(width, "little" if rng.integers(2) else "big")
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length] * int(rng.integers(1, 50))
    elif kind == 4:
        data[place : place + length] = rng.bytes(length)
    else:
        del data[place:]
    return bytes(data)


_watching = threading.local()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if getattr(_watching, "on", False) and event.startswith(_FORBIDDEN):
        raise RuntimeError(f"{event}: {arguments!r:.200}")
    if getattr(_watching, "on", False) and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        folder = _watching.folder
        if folder is None or not os.path.abspath(os.fsdecode(arguments[0])).startswith(f"{folder}{os.sep}"):
            raise RuntimeError(f"open: {arguments[0]!r}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def audited(folder: Path | None = None) -> Iterator[None]:
    """Fail, in this thread, on an import, code that runs, a process, a connection, or a file opened elsewhere."""
    _watching.on, _watching.folder = True, folder
    try:
        yield
    finally:
        _watching.on = False


def _kept(data: bytes) -> Path:
    folder = Path(os.environ.get("GITFAST_FUZZ_FOLDER", "fuzz-findings"))
    folder.mkdir(exist_ok=True)
    path = folder / f"{abs(hash(data)):016x}"
    path.write_bytes(data)
    return path
