"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def growth(work: Callable[[], T]) -> tuple[T, tuple[int, int] | None]:
    """Run ``work``; return with its result the bytes that it took at most, and those that stayed; None: not known."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that free memory of other work does not hide this one's
        _CLEAR.write_text(_RESET_PEAK)
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        return work(), None
    result = work()
    ctypes.CDLL(None).malloc_trim(0)
    return result, (_resident("VmHWM") - before, _resident("VmRSS") - before)


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # in kB
    raise OSError(f"{_STATUS}: no {field}")
