"""Files of a checkpoint as they are opened: regular ones only, of bounded size, and every error names its file.

A checkpoint comes from anywhere, so a name in it may be a pipe that never answers, a device without end, or the small
text that Git LFS leaves in place of a file.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from gitfast.errors import CheckpointError, ConfigError, GitfastError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

T = TypeVar("T")

_MAX_JSON_BYTES = 1 << 20
_MAX_DIGITS = 40  # model_max_length, 10 ** 30 in published files, is the longest number there is
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class FormatError(Exception):
    """A fault in a file's content, without the file's name: a reader adds that."""


class NonBlockingFile(io.FileIO):
    """A file opened by O_NONBLOCK: what would wait is an error. Some of /proc are regular, and have nothing yet."""

    def read(self, size: int | None = -1, /) -> bytes:
        return self._done(super().read(size))

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        return self._done(super().readinto(buffer))

    def readall(self) -> bytes:
        return self._done(super().readall())

    def write(self, data: ReadableBuffer, /) -> int:
        return self._done(super().write(data))

    def _done(self, result: T | None) -> T:
        if result is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return result


def open_regular(path: str | os.PathLike[str], error_type: type[GitfastError] = CheckpointError) -> BinaryIO:
    """Open a regular file for reading in binary.

    Raises:
        error_type: there is none, it cannot be read, it is a folder, pipe, socket or device, or it is a Git LFS
            pointer; the message names it.
    """
    try:
        # O_NONBLOCK: opening a pipe without it waits for a writer. Regular files on a disk ignore it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise error_type(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    file = None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise error_type(f"{path}: expected a regular file, got {kind}")
        file = io.BufferedReader(NonBlockingFile(descriptor))
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise error_type(f"{path}: a Git LFS pointer, not the file itself; fetch that with 'git lfs pull'")
        file.seek(0)
    except BaseException as error:
        if file is None:
            os.close(descriptor)
        else:
            file.close()
        if isinstance(error, OSError):
            raise error_type(f"{path}: {error.strerror or error}") from error
        raise
    return file


def read_bytes(path: str | Path, limit: int, error_type: type[GitfastError] = CheckpointError) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes."""
    with open_regular(path, error_type) as file:
        size = os.fstat(file.fileno()).st_size or limit  # files of /proc say 0 whatever they hold
        if size > limit:
            raise error_type(f"{path}: expected at most {limit} bytes, got {size}")
        try:
            data = file.read(size + 1)
        except OSError as error:
            raise error_type(f"{path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise error_type(f"{path}: expected at most {limit} bytes")
    return data


def read_json(path: str | Path, error_type: type[GitfastError] = ConfigError) -> dict[str, Any]:
    """Read the JSON object in a small file. Errors are of ``error_type`` and name the file."""
    return parse_json(read_bytes(path, _MAX_JSON_BYTES, error_type), path, error_type)


def parse_json(data: bytes, path: str | Path, error_type: type[GitfastError]) -> dict[str, Any]:
    """Parse the JSON object in ``data``, the content of ``path``.

    Integers of more than 40 digits become floats, perhaps infinite: no arithmetic on them overflows.
    """
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")  # json would guess at other encodings
        values = json.loads(text, parse_int=json_number)
    except RecursionError:
        raise error_type(f"{path}: JSON that is nested too deeply") from None
    except ValueError as error:
        raise error_type(f"{path}: not valid JSON: {error if data else 'the file is empty'}") from error
    if not isinstance(values, dict):
        raise error_type(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def json_number(digits: str) -> int | float:
    """Parse an integer in JSON; one of more than 40 digits becomes a float."""
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def is_there(path: str | Path, error_type: type[GitfastError] = CheckpointError) -> bool:
    """Return whether the path exists; raise if that cannot be known, as in an unreadable folder."""
    return _mode(path, error_type) is not None


def is_folder(path: str | Path, error_type: type[GitfastError] = CheckpointError) -> bool:
    """Return whether ``path`` is a folder, or a link to one."""
    mode = _mode(path, error_type)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: str | Path, error_type: type[GitfastError]) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise error_type(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise error_type(f"{str(path)!r}: {error}") from error
