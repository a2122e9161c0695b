"""Tokens as they are generated: a callback turned into a generator."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from gitfast.errors import EngineError
from gitfast.platforms import after_fork_in_child
from gitfast.types import TokenCallback

T = TypeVar("T")


def stream_tokens(generate: Callable[[TokenCallback], T]) -> Generator[Sequence[int], None, T]:
    """Run ``generate(on_token)`` in a thread and yield the token ids it reports; return what it returns.

    Closing the generator makes the callback say stop, and waits for the step that is running. So does the end of the
    interpreter, for streams that nobody closed.

    Raises:
        EngineError: in a forked child, for a stream that its parent began.
    """
    stream = _Stream(generate)
    try:
        while (ids := stream.next()) is not None:
            yield ids
    finally:
        stream.stop()
    return stream.result()


class _Stream(Generic[T]):
    """A generation in a thread of its own."""

    def __init__(self, generate: Callable[[TokenCallback], T]) -> None:
        self._generate = generate
        self._tokens: SimpleQueue[Sequence[int] | None] = SimpleQueue()  # None: the end
        self._stopped = False
        self._process = os.getpid()
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="gitfast-stream", daemon=True)
        _running.add(self)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or none any more as the interpreter ends
            _running.discard(self)
            raise

    def next(self) -> Sequence[int] | None:
        """Return new token ids; None at the end."""
        if os.getpid() != self._process:
            raise EngineError("stream: goes on in the process that began it, not in a forked child")
        return self._tokens.get()

    def stop(self) -> None:
        """End within one token, and wait for it."""
        self._stopped = True
        # A daemon thread may be about to start it as the interpreter ends: it then ends at its first token.
        if os.getpid() == self._process and self._thread.ident is not None:
            self._thread.join()

    def result(self) -> T:
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _on_token(self, row: int, token_ids: Sequence[int]) -> bool:
        self._tokens.put(token_ids)
        return not self._stopped

    def _run(self) -> None:
        try:
            self._results.append(self._generate(self._on_token))
        except BaseException as error:  # raised again by the reader
            self._errors.append(error)
        finally:
            _running.discard(self)
            self._tokens.put(None)


_running: set[_Stream] = set()


def _stop_all() -> None:
    for stream in list(_running):
        stream.stop()


# Before the interpreter ends, while threads still get the GIL. They are daemons, so that nothing else waits for them.
getattr(threading, "_register_atexit", atexit.register)(_stop_all)
after_fork_in_child(_running.clear)
