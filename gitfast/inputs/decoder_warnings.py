"""Warnings of Pillow's decoders: at most one line for each file, named, and never of its own limits.

A hostile file makes a decoder warn a hundred thousand times. ``warnings.catch_warnings`` changes what all threads do,
so this adds one filter that is asked for every warning of Pillow and answers for the threads that decode here only.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class _Held(threading.local):
    """The two patterns of the filter: it asks for a warning's text first, then for the module that it comes from."""

    messages: list[str] | None = None  # from the file that this thread decodes; None: it decodes none
    count = 0
    asked = ""

    def match(self, text: str) -> bool:
        """Return whether the thread decodes; the interface is that of a regular expression in a filter."""
        self.asked = text
        return self.messages is not None

    def hold(self, module: str) -> bool:
        """Hold back the warning that was asked for, if it is Pillow's."""
        if self.messages is None or not module.startswith("PIL."):
            return False
        if "decompression bomb" not in self.asked:  # the limits here are ours
            self.count += 1
            if not self.messages:
                self.messages.append(self.asked)
        return True


class _Modules:
    def match(self, module: str) -> bool:
        return _held.hold(module)


_held = _Held()
_FILTER = ("ignore", _held, Warning, _Modules(), 0)


@contextmanager
def held_back(name: str | None) -> Iterator[None]:
    """Hold back Pillow's warnings in this thread; afterwards repeat the first as one of the file ``name``.

    With None as the name, repeat nothing.
    """
    if _held.messages is not None:  # an outer block speaks for this one
        yield
        return
    filters = warnings.filters
    if not filters or filters[0] is not _FILTER:
        with suppress(ValueError):
            filters.remove(_FILTER)  # type: ignore[attr-defined]
        filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    messages: list[str] = []
    _held.messages, _held.count = messages, 0
    try:
        yield
    finally:
        _held.messages = None
    if messages and name is not None:
        others = f" (and {_held.count - 1} more)" if _held.count > 1 else ""
        # Without a registry: it would keep the text of every file.
        text = f"{name}: {' '.join(messages[0].split())[:200]}{others}"
        warnings.warn_explicit(text, UserWarning, "gitfast", 1)
