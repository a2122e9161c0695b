"""A cache of image prefixes in front of any engine: an image that was seen recently is not encoded again."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from gitfast import arguments
from gitfast.engines.base import Decoding, Engine, EngineStats
from gitfast.errors import ArgumentError
from gitfast.platforms import after_fork_in_child
from gitfast.types import CancelToken, Generation, GenerationOptions, ImagePrefix, Normalization, TokenCallback

_MAX_FILES = 1 << 16  # whose pixels are known: some 15 MB
_POLL_INTERVAL_S = 0.02  # interval at which a call that waits for another's encoding checks its token


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counts since the cache was made, and its present contents."""

    hits: int  # also of calls that waited for another's encoding
    misses: int
    evictions: int
    prefixes: int
    nbytes: int


class CachingEngine(Engine):
    """An ``Engine`` with an LRU cache of the prefixes of ``engine``. Thread-safe.

    An image that several calls want at the same time is encoded once: the others wait for it.

    The key of ``encode`` is a digest of the pixels after preprocessing: the same picture in another file is a hit, and
    the same file under other preprocessing settings is not. ``note_file`` records the pixels of a file's bytes, so that
    ``of_file`` finds the prefix without decoding and resizing them again. ``encode_keyed`` takes the caller's keys. An
    evicted prefix stays valid for those who still hold it.
    """

    def __init__(self, engine: Engine, max_bytes: int) -> None:
        """Keep at most ``max_bytes`` of keys and values; a prefix larger than that is not kept.

        Raises:
            ArgumentError: ``max_bytes`` is no positive integer.
        """
        if arguments.integer("prefix_cache_bytes", max_bytes) < 1:
            raise ArgumentError(f"prefix_cache_bytes: expected a positive number of bytes, got {max_bytes}")
        self.engine = engine
        self.max_bytes = max_bytes
        self._prefixes: OrderedDict[bytes, ImagePrefix] = OrderedDict()
        self._files: OrderedDict[bytes, bytes] = OrderedDict()  # digests of pixels by ``file_key``
        self._hits = self._misses = self._evictions = self._nbytes = 0
        self._after_fork()
        _engines.add(self)

    def _after_fork(self) -> None:
        """Start with no lock held and no encoding in progress: the threads that did it are the parent's."""
        self._lock = threading.Lock()
        self._coming: dict[bytes, Future[ImagePrefix]] = {}
        self._nbytes = sum(prefix.nbytes for prefix in self._prefixes.values())  # may have been cut off in between

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.engine.name

    @property
    def normalization(self) -> Normalization | None:  # type: ignore[override]
        return self.engine.normalization

    @property
    def rows_at_once(self) -> int | None:  # type: ignore[override]
        return self.engine.rows_at_once

    @property
    def dtype(self) -> str:
        return self.engine.dtype

    @property
    def nbytes(self) -> int | None:
        """Bytes of the engine's weights; ``cache_stats`` has those of the prefixes."""
        return self.engine.nbytes

    @property
    def stats(self) -> EngineStats:  # type: ignore[override]
        return self.engine.stats

    def plans(self) -> Sequence[Any]:
        return self.engine.plans()

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
            self._files.clear()
            self._nbytes = 0

    def of_file(self, key: bytes) -> ImagePrefix | None:
        """Look up the prefix of a file by its ``file_key``; None where it is not known, or no longer there."""
        with self._lock:
            digest = self._files.get(key)
            prefix = None if digest is None else self._prefixes.get(digest)
            if digest is None or prefix is None:
                return None
            self._hits += 1
            self._files.move_to_end(key)
            self._prefixes.move_to_end(digest)
            return prefix

    def note_file(self, key: bytes, pixels: np.ndarray) -> None:
        """Record the pixels, as ``encode`` takes them for one image, of the file with this ``file_key``."""
        digest = _digest(pixels)
        with self._lock:
            self._files[key] = digest
            if len(self._files) > _MAX_FILES:
                self._files.popitem(last=False)

    def encode(
        self, pixel_values: np.ndarray, *, interpolate_positions: bool = False, cancel: CancelToken | None = None
    ) -> Sequence[ImagePrefix]:
        """Encode those images only that are not in the cache; equal ones of a batch once. See ``Engine.encode``."""

        def encode(missing: list[int]) -> Sequence[ImagePrefix]:
            rows = pixel_values if len(missing) == len(pixel_values) else pixel_values[missing]
            return self.engine.encode(rows, interpolate_positions=interpolate_positions, cancel=cancel)

        if not isinstance(pixel_values, np.ndarray) or pixel_values.ndim == 0:  # the engine reports the error
            return self.engine.encode(pixel_values, interpolate_positions=interpolate_positions, cancel=cancel)
        return self.encode_keyed([_digest(pixels) for pixels in pixel_values], encode, cancel=cancel)

    def encode_keyed(
        self,
        keys: Sequence[bytes],
        encode: Callable[[list[int]], Sequence[ImagePrefix]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[ImagePrefix]:
        """Look up prefixes by key, and make the missing ones.

        Args:
            keys: One per image; equal keys must mean equal prefixes (``file_key``).
            encode: Takes indices into ``keys`` of images to encode, returns their prefixes in that order. Its errors
                are raised; other calls that wait for one of those images then make it themselves.
            cancel: Checked also while another call encodes an image that this one needs.
        """
        found: dict[bytes, ImagePrefix] = {}
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        while missing := {key: i for key, i in first.items() if key not in found}:
            own, others = self._claim(missing, found)
            try:
                if own:
                    indices = [missing[key] for key in own]
                    for key, prefix in zip(own, encode(indices), strict=True):
                        found[key] = prefix
                        self._put(key, prefix)
                        own[key].set_result(prefix)
            finally:
                self._release(own)
            for key, future in others.items():
                came = _wait(future, cancel)
                if came is not None:
                    found[key] = came
        return [found[key] for key in keys]

    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
        *,
        cancel: CancelToken | None = None,
    ) -> list[list[Generation]]:
        return self.engine.generate(prefixes, prompts, options, on_token, cancel=cancel)

    def score(
        self,
        prefixes: Sequence[ImagePrefix | None],
        sequences: Sequence[Sequence[int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[np.ndarray]:
        return self.engine.score(prefixes, sequences, cancel=cancel)

    def decoding(self) -> Decoding:
        return self.engine.decoding()

    @property
    def attends(self) -> bool:  # type: ignore[override]
        return self.engine.attends

    def attend(self, prefix: ImagePrefix, sequence: Sequence[int]) -> np.ndarray:
        return self.engine.attend(prefix, sequence)

    def _claim(
        self, missing: dict[bytes, int], found: dict[bytes, ImagePrefix]
    ) -> tuple[dict[bytes, Future[ImagePrefix]], dict[bytes, Future[ImagePrefix]]]:
        """Put cached prefixes into ``found``; return the keys for this call to make, and those others are making."""
        own: dict[bytes, Future[ImagePrefix]] = {}
        others: dict[bytes, Future[ImagePrefix]] = {}
        with self._lock:
            for key in missing:
                if (prefix := self._prefixes.get(key)) is not None:
                    self._hits += 1
                    self._prefixes.move_to_end(key)
                    found[key] = prefix
                elif (coming := self._coming.get(key)) is not None:
                    self._hits += 1
                    others[key] = coming
                else:
                    self._misses += 1
                    own[key] = self._coming[key] = Future()
        return own, others

    def _release(self, own: dict[bytes, Future[ImagePrefix]]) -> None:
        """End this call's encodings; tell waiting calls which of them did not come."""
        with self._lock:
            for key, future in own.items():
                if self._coming.get(key) is future:
                    del self._coming[key]
        for future in own.values():
            if not future.done():
                future.cancel()

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


_engines: weakref.WeakSet[CachingEngine] = weakref.WeakSet()


def _reset_engines() -> None:
    for engine in list(_engines):
        engine._after_fork()


after_fork_in_child(_reset_engines)


def file_key(data: bytes, settings: object) -> bytes:
    """Make the key of an image file's bytes under preprocessing ``settings``, whose ``repr`` must be complete."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16, person=b"gitfast file")
    digest.update(data)
    return digest.digest()


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr((pixels.shape, pixels.dtype.str)).encode(), digest_size=16, person=b"gitfast pixels")
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _wait(future: Future[ImagePrefix], cancel: CancelToken | None) -> ImagePrefix | None:
    """Wait for another call's prefix; return None where it ended without."""
    while True:
        if cancel is not None:
            cancel.check()
        try:
            return future.result(timeout=None if cancel is None else _POLL_INTERVAL_S)
        except TimeoutError:
            continue
        except FutureCancelled:
            return None
