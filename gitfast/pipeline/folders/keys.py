"""A set of integers of which most are known at the beginning: 8 bytes each, where a set takes 70."""

from __future__ import annotations

from array import array
from bisect import bisect_left

import numpy as np


class KeySet:
    """64-bit keys of results that exist: those read from a file, sorted, and those added since."""

    def __init__(self) -> None:
        self._old = array("q")
        self._new: set[int] = set()

    def add(self, key: int) -> None:
        self._new.add(key)

    def load(self, keys: array[int]) -> None:
        """Take all keys of ``keys``, which becomes this set's own."""
        values = np.frombuffer(keys, np.int64)
        values.sort()
        self._old = keys

    def __contains__(self, key: int) -> bool:
        if key in self._new:
            return True
        place = bisect_left(self._old, key)
        return place < len(self._old) and self._old[place] == key

    def __len__(self) -> int:
        return len(self._old) + len(self._new)
