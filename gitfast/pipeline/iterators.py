"""Iterators over more items than memory holds: in groups, and computed ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def grouped(items: Iterable[T], size: int, weight: Callable[[T], int] = lambda _: 1) -> Generator[list[T], None, None]:
    """Group items in order, in lists that end as soon as their weights add up to ``size``.

    An error of ``items`` is raised after the items that came before it. A list may be changed by who gets it.
    """
    group: list[T] = []
    total = 0
    try:
        for item in items:
            group.append(item)
            total += weight(item)
            if total >= size:
                yield group
                group, total = [], 0
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def prefetch(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """Do ``map`` one value ahead: while a value is in use, the next is computed in a thread.

    Items are taken in the caller's thread, as an iterator may ask for, and so that one that blocks can be interrupted.
    Errors, of ``items`` too, are raised in their place. Closing waits for the value that is being computed.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, "gitfast-prefetch") as pool:

        def begin() -> Future[R] | None:
            try:
                return pool.submit(function, next(iterator))
            except StopIteration:
                return None
            except Exception as error:
                failed: Future[R] = Future()
                failed.set_exception(error)
                return failed

        for first in iterator:
            value = function(first)  # in this thread: where there is no other item, none need be started
            while coming := begin():
                yield value
                value = coming.result()
            yield value


def map_ahead(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Generator[R, None, None]:
    """Do ``map`` in several threads, ``ahead`` values before the one in use; in order.

    Items are taken in the caller's thread. Errors, of ``items`` too, are raised in their place. Closing waits for the
    values that are being computed.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "gitfast-prefetch") as pool:
        try:
            iterator = iter(items)
            error: Exception | None = None
            while True:
                while error is None and len(waiting) <= ahead:
                    try:
                        waiting.append(pool.submit(function, next(iterator)))
                    except StopIteration:
                        break
                    except Exception as raised:
                        error = raised
                if not waiting:
                    break
                yield waiting.popleft().result()
            if error is not None:
                raise error
        finally:
            for future in waiting:
                future.cancel()
