"""Threads that read inputs side by side, and the bytes they may hold meanwhile."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from gitfast.platforms import after_fork_in_child, usable_cpus

T = TypeVar("T")

_MAX_THREADS = 32


class ByteBudget:
    """A limit on the bytes that threads hold. A request for more than the limit waits until it is alone.

    ``reading`` is for encoded bytes, ``decoding`` for the pictures made of them within a ``reading``. Encoded
    bytes that wait to be decoded count, but never keep the only one left from being decoded: one always goes on.
    """

    def __init__(self) -> None:
        self._forget()
        after_fork_in_child(self._forget)  # in the child nobody holds anything, nor any lock

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._decoders = 0
        self._freed = 0  # bytes that were let go since memory was given back

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    @contextmanager
    def reading(self, nbytes: int, limit: int) -> Iterator[None]:
        """Hold encoded bytes; wait for others to release theirs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + nbytes <= limit)
            self._held += nbytes
        try:
            yield
        finally:
            self._release(nbytes)

    @contextmanager
    def decoding(self, nbytes: int, limit: int) -> Iterator[None]:
        """Hold the bytes of decoding, inside ``reading`` or without; wait for others that decode. Not to be nested.

        Each time that half of ``limit`` was held and let go, the memory that the C library kept of it goes back to the
        system. Glibc keeps it apart for each thread: eight would come to hold a large picture each.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._decoders or self._held + nbytes <= limit)
            self._held += nbytes
            self._decoders += 1
            trim = self._freed > limit // 2
            if trim:
                self._freed = 0
        if trim:  # here and not at the end: callers let go of a picture after its bytes
            _malloc_trim(0)
        try:
            yield
        finally:
            self._release(nbytes, decoders=1)

    def _release(self, nbytes: int, decoders: int = 0) -> None:
        with self._changed:
            self._held = max(0, self._held - nbytes)
            self._decoders = max(0, self._decoders - decoders)
            self._freed += nbytes
            self._changed.notify_all()


def _find_malloc_trim() -> Callable[[int], object]:
    """Return glibc's function; elsewhere one that does nothing."""
    with suppress(AttributeError, OSError, TypeError):
        return ctypes.CDLL(None).malloc_trim
    return lambda keep: None


_malloc_trim = _find_malloc_trim()
BUDGET = ByteBudget()  # one for the process: models share its memory


class _Pool:
    """The threads, started at the first use and kept; a forked child starts its own."""

    def __init__(self) -> None:
        self._forget()
        after_fork_in_child(self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[[], None]) -> Future[None]:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(min(_MAX_THREADS, usable_cpus()), "gitfast-read")
            return self._executor.submit(function)


_POOL = _Pool()


def map_in_threads(function: Callable[[T], Any], items: Sequence[T], num_threads: int | None = None) -> list[Any]:
    """Map ``function`` over items, in order. Decoders release the GIL, so images are worked on side by side.

    The caller's thread takes part, so calls may be nested and need no thread of the pool to get on.

    Args:
        num_threads: Threads that work at a time; None: as many as there are CPUs, at most 32.

    Raises:
        The error of the first item that has one, once nothing is running any more; no further items are begun.
    """
    threads = min(len(items), num_threads or min(_MAX_THREADS, usable_cpus()))
    if threads <= 1:
        return [function(item) for item in items]
    waiting = deque(enumerate(items))
    results: dict[int, Any] = {}
    errors: dict[int, BaseException] = {}

    def work() -> None:
        with suppress(IndexError):  # popleft: nothing left
            while True:
                index, item = waiting.popleft()
                try:
                    results[index] = function(item)
                except BaseException as error:
                    errors[index] = error
                    waiting.clear()

    helpers: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # the interpreter is ending, and starts no threads: the caller's does it all
            helpers += [_POOL.submit(work) for _ in range(threads - 1)]
        work()
    finally:
        waiting.clear()
        wait([helper for helper in helpers if not helper.cancel()])
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(items))]
