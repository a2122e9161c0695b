"""Sources of inputs: a path, bytes, a binary file object, or a record of Hugging Face datasets."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping
from typing import IO, Any

from gitfast.checkpoints.files import open_regular
from gitfast.errors import ImageError

_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]+://|data:")
_MAX_NAME = 500
# Seeking in these decompresses everything before the place sought, so they are read once, from their start.
_DECOMPRESSORS = ("gzip", "bz2", "lzma", "zipfile", "compression.zstd")


def describe_source(source: object) -> str:
    """Name an input for messages."""
    if isinstance(source, Mapping):
        path = source.get("path")
        return describe_source(path if isinstance(path, str) else source.get("bytes"))
    if isinstance(source, (str, os.PathLike)):
        return str(source)[:_MAX_NAME]
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "encoded bytes"
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return name[:_MAX_NAME] if isinstance(name, str) else "file object"
    return "image array" if hasattr(source, "dtype") else "image"


def is_stateless(source: object) -> bool:
    """Return whether two threads may read the source at once: a path, bytes, or a record of them."""
    return isinstance(source, (str, os.PathLike, bytes, Mapping))


def open_encoded(source: Any, name: str) -> IO[bytes]:
    """Open a path, bytes, a record ``{"bytes": ..., "path": ...}``, or a binary file object, which stays itself.

    The caller closes a result that is not ``source``.

    Raises:
        ImageError: it is none of these, or a path to no regular file: a pipe would be waited for without end.
    """
    if isinstance(source, Mapping):
        return open_encoded(_from_record(source, name), name)
    if isinstance(source, str) and _URL.match(source):
        raise ImageError(f"{name}: looks like a URL; URLs are never fetched, pass a path or the downloaded bytes")
    if isinstance(source, (str, os.PathLike)):
        return open_regular(source, ImageError)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if hasattr(source, "read"):
        return source
    raise ImageError(
        f"{name}: expected a path, bytes, a binary file object, a PIL image or a uint8 array, "
        f"got {type(source).__name__}"
    )


def _from_record(record: Mapping[Any, Any], name: str) -> Any:
    for key, kinds in (("bytes", (bytes, bytearray, memoryview)), ("path", (str, os.PathLike))):
        value = record.get(key)
        if value is not None:
            if not isinstance(value, kinds):
                raise ImageError(f"{name}: {key}: expected {kinds[0].__name__}, got {type(value).__name__}")
            return value
    raise ImageError(f"{name}: expected a mapping with 'bytes' or 'path', got the keys {list(record)!r:.200}")


def encoded_size(file: IO[bytes]) -> int:
    """Return the bytes of a file from ``open_encoded``, 0 where they are unknown or in memory already."""
    try:
        return os.fstat(file.fileno()).st_size
    except (AttributeError, OSError, ValueError):
        return 0


def read_encoded(file: IO[bytes], name: str, max_bytes: int, limit: str) -> bytes:
    """Read all bytes of a file (from its start, when it can seek), however few of them it gives at a time.

    Raises:
        ImageError: more than ``max_bytes``, which ``limit`` names; or an error of the file, of whatever kind.
    """
    with contextlib.suppress(Exception):  # a pipe cannot
        file.seek(0)
    parts: list[bytes] = []
    total = 0
    while total <= max_bytes:
        try:
            part = file.read(max_bytes + 1 - total)
        except Exception as error:  # a zip member's checksum, a gzip cut short, anybody's file object
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"[:200]
            raise ImageError(f"{name}: cannot be read: {reason}") from None
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise ImageError(f"{name}: expected a file opened in binary mode, got {type(part).__name__} from read()")
        if not part:
            break
        parts.append(bytes(part))
        total += len(part)
    if total > max_bytes:
        raise ImageError(f"{name}: more than {max_bytes} bytes ({limit})")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def seekable(file: IO[bytes], name: str, max_bytes: int, limit: str) -> IO[bytes]:
    """Return the file at its start, or a copy in memory where seeking is slow or impossible.

    Raises:
        ImageError: as ``read_encoded``.
    """
    try:
        if type(file).__module__.startswith(_DECOMPRESSORS):
            raise OSError
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    except Exception:  # a pipe, or anybody's file object
        return io.BytesIO(read_encoded(file, name, max_bytes, limit))
    if size > max_bytes:
        raise ImageError(f"{name}: more than {max_bytes} bytes ({limit})")
    return file


def read_start(file: IO[bytes], size: int = 12) -> bytes:
    """Return the first bytes of a file that can seek, which is left at its start."""
    file.seek(0)
    start = b""
    while len(start) < size and (part := file.read(size - len(start))):
        start += part
    file.seek(0)
    return start
