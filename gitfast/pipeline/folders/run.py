"""The loop of a run over many inputs: find, skip, compute, write; and its stopping."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from gitfast.errors import GitfastError
from gitfast.pipeline.folders.outputs import ItemOutputError, LineFile, Output
from gitfast.pipeline.folders.records import TextEdit
from gitfast.pipeline.folders.walk import Item
from gitfast.results import Result

# From inputs, taken as they are needed, to their results, one list per input in order; bad inputs' in ``error``.
Task = Callable[[Iterable[Any]], Generator[Sequence[Result], None, None]]


class Interrupted(KeyboardInterrupt):
    """A signal that ends the run at once; ``signal`` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


class Stop:
    """A request to end after the inputs begun. Signals make it; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting = False

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM make the request, in the main thread; elsewhere nothing does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Interrupt at the first signal: nothing has begun, and the awaited input may never come."""
        self._waiting = True
        try:
            if self.signal is not None:
                raise Interrupted(self.signal)
            yield
        finally:
            self._waiting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = bool(self), number
        if again or self._waiting:
            raise Interrupted(number)


@dataclass
class Counts:
    """Counts of a run's inputs by outcome."""

    written: int = 0
    failed: int = 0
    done_before: int = 0
    failed_before: int = 0

    @property
    def total(self) -> int:
        return self.written + self.failed + self.done_before + self.failed_before


@dataclass(kw_only=True)
class Run:
    """One pass over inputs.

    Attributes:
        task: Computes results.
        num_results: Results per input.
        output: Takes them.
        errors: Takes the inputs that failed; None: they are told only.
        edit: Edits of texts, before they are written.
        fail_fast: End at the first input that fails.
        unique: No two inputs have one name.
        on_error: Called with the fault of an input.
        on_progress: Called when one more input is done.
        write_errors: Give failed inputs to ``output``, too.
        stop: Asks it to end.
    """

    task: Task
    output: Output
    num_results: int = 1
    errors: LineFile | None = None
    edit: TextEdit
    fail_fast: bool = False
    unique: bool = True
    on_error: Callable[[str], None] = lambda _: None
    on_progress: Callable[[Counts], None] = lambda _: None
    write_errors: bool = False
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.counts = Counts()
        self._taken: deque[Item] = deque()  # their results are to come
        self._names: set[int] = set()

    def skip(self, names: Sequence[str]) -> Sequence[bool]:
        """Mark the inputs that need not be read: they are done, or failed in an earlier run."""
        skipped = self.output.has(names)
        self.counts.done_before += sum(skipped)
        if self.errors is None and self.unique:
            return skipped
        failed = self.errors.has(names) if self.errors is not None else [False] * len(names)
        return [
            is_done or self._failed_before(has_failed) or self._is_twice(name)
            for name, is_done, has_failed in zip(names, skipped, failed, strict=True)
        ]

    def _failed_before(self, has_failed: bool) -> bool:
        self.counts.failed_before += has_failed
        return has_failed

    def _is_twice(self, name: str) -> bool:
        if self.unique or hash(name) in self._names:
            return not self.unique
        self._names.add(hash(name))
        return False

    def process(self, items: Iterable[Item]) -> bool:
        """Compute and write all. Returns whether the inputs were finished; a stop and ``fail_fast`` end before.

        Raises:
            OutputError: results cannot be written; earlier ones are.
        """
        with contextlib.closing(self.task(self._sources(items))) as computed:
            for results in computed:
                if not self._finish(self._taken.popleft(), results):
                    return False
        return not self.stop

    def _sources(self, items: Iterable[Item]) -> Iterator[Any]:
        """Yield the sources of the items for the task, noting each item in ``_taken``."""
        for item in items:
            self._taken.append(item)
            yield self.output.problem(item) or item.source
            if self.stop:
                return

    def _finish(self, item: Item, results: Sequence[Result]) -> bool:
        """Write the outcome of an item; return False to end the run."""
        error = results[0].error
        if error is None:
            try:
                self.output.write(item, [self.edit.apply(result) for result in results])
            except ItemOutputError as problem:
                error = problem
            else:
                self.counts.written += 1
                self.on_progress(self.counts)
                return True
        message = str(error).removeprefix("encoded bytes: ")  # from a shard, which has a better name
        named = GitfastError(message if message.startswith(item.path) else f"{item.path}: {message}")
        failed = Result(text="", error=named)
        if self.errors is not None:
            self.errors.write(item, [failed])
        if self.write_errors:
            self.output.write(item, [failed] * self.num_results)
        self.counts.failed += 1
        self.on_error(str(named))
        self.on_progress(self.counts)
        return not self.fail_fast
