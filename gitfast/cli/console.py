"""Messages and a progress bar on stderr, which may be a terminal, closed or full: results go on without them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

from gitfast.pipeline.folders.names import printable

_REDRAW_INTERVAL_S = 0.1
_RATE_WINDOW_S = 15.0  # the rate shown is the mean over this time
_COUNT_TIMEOUT_S = 1.0  # wait for the total before the bar is drawn a last time


class Console:
    """The stderr of a command: messages and a progress bar. Names in messages are escaped."""

    def __init__(self, count: Callable[[], int | None] | None = None) -> None:
        """Take ``count``, which gives the number of inputs; it is called in a thread, and only for a terminal."""
        self._shown = count is not None and sys.stderr.isatty()
        self._total: int | None = None
        self._drawn_at = 0.0
        self._start = time.monotonic()
        self._marks: list[tuple[float, int]] = []  # (time, done) of the last seconds
        self._state = (0, 0, 0)
        self._counting: threading.Thread | None = None
        if self._shown and count is not None:
            self._counting = threading.Thread(target=self._count, args=(count,), name="gitfast-count", daemon=True)
            self._counting.start()

    def message(self, text: str) -> None:
        """Write one line."""
        self.clear()
        self._write(f"gitfast: {printable(text)}\n")

    def progress(self, done: int, before: int, failed: int) -> None:
        """Draw the bar: ``done`` inputs, ``before`` of them by earlier runs, and ``failed`` ones."""
        self._state = (done, before, failed)
        now = time.monotonic()
        if self._shown and now - self._drawn_at >= _REDRAW_INTERVAL_S:
            self._draw(now)

    def clear(self) -> None:
        """Take the bar away, for something else to be written."""
        if self._drawn_at:
            self._write("\r\x1b[K")
            self._drawn_at = 0.0

    def close(self) -> None:
        """Draw the bar a last time and take it away."""
        if self._counting is not None:
            self._counting.join(_COUNT_TIMEOUT_S)
            self._draw(time.monotonic())
            self._shown = False
        self.clear()

    def _count(self, count: Callable[[], int | None]) -> None:
        with contextlib.suppress(OSError):
            self._total = count()

    def _draw(self, now: float) -> None:
        done, before, failed = self._state
        if self._total == 1 or (self._total is None and now - self._start < 1):
            return
        self._marks = [mark for mark in self._marks if now - mark[0] < _RATE_WINDOW_S]
        self._marks.append((now, done - before))
        width = terminal_width()
        line = bar(done, self._total, self._rate(), failed, width - 1)
        self._write(f"\r{line}\x1b[K")
        self._drawn_at = now

    def _rate(self) -> float:
        """Return the inputs of this run per second."""
        (begin, first), (end, last) = self._marks[0], self._marks[-1]
        if begin == end:
            begin, first = self._start, 0
        return (last - first) / (end - begin) if end > begin else 0.0

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # full, or closed
            sys.stderr.write(text)
            sys.stderr.flush()


def bar(done: int, total: int | None, rate: float, failed: int, width: int) -> str:
    """Draw progress in at most ``width`` characters; without a total there is no bar and no time left."""
    parts = [f"{done}/{total}" if total is not None else f"{done} done", f"{rate:.1f}/s"]
    if total is not None and rate > 0:
        parts.append(f"{duration(max(0, total - done) / rate)} left")
    if failed:
        parts.append(f"{failed} failed")
    text = "  ".join(parts)
    room = min(40, width - len(text) - 3)
    if total and room >= 10:
        filled = min(room, done * room // total)
        text = f"[{'#' * filled}{'.' * (room - filled)}] {text}"
    return text[: max(0, width)]


def duration(seconds: float) -> str:
    """Write seconds as 0:07, 12:34 or 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
