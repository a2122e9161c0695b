"""A cache of image prefixes in front of any engine: an image that was seen lately is not encoded again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gitfast import arguments
from gitfast.engines.base import Attend, Engine, attend_of, normalization_of, rows_at_once_of
from gitfast.errors import ArgumentError
from gitfast.types import Generation, GenerationOptions, ImagePrefix, Normalization, TokenCallback


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counts since the cache was made, and what it holds now."""

    hits: int
    misses: int
    evictions: int
    prefixes: int
    nbytes: int


class CachingEngine:
    """An ``Engine`` that keeps the prefixes of ``engine``, the least recently used ones going first. Thread-safe.

    The key is a digest of the pixels after preprocessing, so that the same picture in another file is a hit, and the
    same file under other preprocessing settings is not. Reading and resizing the image are not saved. A prefix that
    was evicted stays valid for those who still hold it.
    """

    def __init__(self, engine: Engine, max_bytes: int) -> None:
        """``max_bytes`` bounds the keys and values that are kept; a prefix larger than that is not.

        Raises:
            ArgumentError: ``max_bytes`` is no positive integer.
        """
        if arguments.integer("prefix_cache_bytes", max_bytes) < 1:
            raise ArgumentError(f"prefix_cache_bytes: expected a positive number of bytes, got {max_bytes}")
        self.engine = engine
        self.name = engine.name
        self.max_bytes = max_bytes
        self._prefixes: OrderedDict[bytes, ImagePrefix] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = self._nbytes = 0

    @property
    def normalization(self) -> Normalization | None:
        """That of ``engine``, for pixels given as bytes."""
        return normalization_of(self.engine)

    @property
    def rows_at_once(self) -> int | None:
        """That of ``engine``, which generates."""
        return rows_at_once_of(self.engine)

    @property
    def cache_stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                prefixes=len(self._prefixes),
                nbytes=self._nbytes,
            )

    def clear(self) -> None:
        """Let go of all prefixes; the counts stay."""
        with self._lock:
            self._prefixes.clear()
            self._nbytes = 0

    def encode(self, pixel_values: np.ndarray, *, interpolate_positions: bool = False) -> Sequence[ImagePrefix]:
        """As ``Engine.encode``, of those images only that are not in the cache; equal ones of a batch once."""
        keys = [_digest(pixels) for pixels in pixel_values]
        found = {key: prefix for key in keys if (prefix := self._get(key)) is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        if missing:
            rows = pixel_values[list(missing.values())]
            encoded = self.engine.encode(rows, interpolate_positions=interpolate_positions)
            for key, prefix in zip(missing, encoded, strict=True):
                found[key] = prefix
                self._put(key, prefix)
        return [found[key] for key in keys]

    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
    ) -> list[list[Generation]]:
        return self.engine.generate(prefixes, prompts, options, on_token)

    def score(self, prefixes: Sequence[ImagePrefix | None], sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self.engine.score(prefixes, sequences)

    @property
    def attend(self) -> Attend | None:
        """That of ``engine``."""
        return attend_of(self.engine)

    def _get(self, key: bytes) -> ImagePrefix | None:
        with self._lock:
            prefix = self._prefixes.get(key)
            if prefix is None:
                self._misses += 1
            else:
                self._hits += 1
                self._prefixes.move_to_end(key)
            return prefix

    def _put(self, key: bytes, prefix: ImagePrefix) -> None:
        with self._lock:
            if key in self._prefixes or prefix.nbytes > self.max_bytes:
                return
            self._prefixes[key] = prefix
            self._nbytes += prefix.nbytes
            while self._nbytes > self.max_bytes:
                _, evicted = self._prefixes.popitem(last=False)
                self._nbytes -= evicted.nbytes
                self._evictions += 1


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr((pixels.shape, pixels.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
