"""A set of integers of which most are known at the beginning: 8 bytes each, where a set takes 70."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class KeySet:
    """64-bit keys of results that exist: those read from a file, sorted, and those added since."""

    def __init__(self) -> None:
        self._old = np.zeros(0, np.int64)
        self._new: set[int] = set()

    def add(self, key: int) -> None:
        self._new.add(key)

    def load(self, keys: array[int]) -> None:
        """Take over the array ``keys`` as this set's keys."""
        self._old = np.frombuffer(keys, np.int64) if keys else np.zeros(0, np.int64)
        self._old.sort()

    def __contains__(self, key: int) -> bool:
        return key in self._new or bool(self.contains([key])[0])

    def contains(self, keys: Sequence[int]) -> np.ndarray:
        """Return membership of many keys at once: bool (len,)."""
        wanted = np.fromiter(keys, np.int64, len(keys))
        if not len(self._old):
            found = np.zeros(len(keys), bool)
        else:
            places = np.minimum(np.searchsorted(self._old, wanted), len(self._old) - 1)
            found = self._old[places] == wanted
        if self._new:
            found |= np.fromiter(self._among_new(keys), bool, len(keys))
        return found

    def _among_new(self, keys: Iterable[int]) -> Iterable[bool]:
        return (key in self._new for key in keys)
