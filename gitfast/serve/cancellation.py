"""Cancellation, as the engine knows it."""

from __future__ import annotations

import threading
import time


class CancelledError(Exception):
    pass


class DeadlineError(Exception):
    pass


class CancelToken:
    def __init__(self, timeout: float | None = None) -> None:
        self._event = threading.Event()
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def cancel(self) -> None:
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set() or (self._deadline is not None and time.monotonic() > self._deadline)
