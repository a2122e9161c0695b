"""Tokens as they are generated: a callback turned into a generator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from gitfast.types import TokenCallback

T = TypeVar("T")


def stream_tokens(generate: Callable[[TokenCallback], T]) -> Generator[Sequence[int], None, T]:
    """Runs ``generate(on_token)`` in a thread and yields the token ids it reports; returns what it returns.

    Closing the generator makes the callback say stop, and waits for the step that is running.
    """
    tokens: SimpleQueue[Sequence[int] | None] = SimpleQueue()  # None: the end
    closed = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def on_token(row: int, token_ids: Sequence[int]) -> bool:
        tokens.put(token_ids)
        return not closed.is_set()

    def run() -> None:
        try:
            results.append(generate(on_token))
        except BaseException as error:  # raised again by the reader
            errors.append(error)
        finally:
            tokens.put(None)

    thread = threading.Thread(target=run, name="gitfast-stream", daemon=True)
    thread.start()
    try:
        while (ids := tokens.get()) is not None:
            yield ids
    finally:
        closed.set()
        thread.join()
    if errors:
        raise errors[0]
    return results[0]
