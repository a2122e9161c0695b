"""Outputs of results: a stream, a file of lines that a later run continues, or a text file beside each input.

Every file is whole at any moment but for its last line, which a run that is killed may leave unfinished and the next
cuts off. A file that is to be replaced is written beside itself first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
import stat
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Literal, Protocol, TextIO

import numpy as np

from gitfast.checkpoints.files import NonBlockingFile, open_regular
from gitfast.errors import GitfastError
from gitfast.pipeline.folders.keys import KeySet
from gitfast.pipeline.folders.names import printable
from gitfast.pipeline.folders.records import RecordError, Records
from gitfast.pipeline.folders.walk import Item
from gitfast.platforms import OPEN_TO_CONTINUE, lock, rename_open
from gitfast.results import Result

Existing = Literal["skip", "overwrite", "append", "prepend"]
Questions = Sequence[str | None]  # None: a caption

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # the next file would meet the same
_MAX_SIDECAR_BYTES = 1 << 20
_SCAN_BYTES = 1 << 20


class OutputError(GitfastError, OSError):
    """Results cannot be written; the message names the file."""


class ItemOutputError(OutputError):
    """The results of one input cannot be written; others may."""


class Output(Protocol):
    """A place for the results of a run. ``name`` is that of an ``Item``."""

    def has(self, names: Sequence[str]) -> Sequence[bool]:
        """Return for each input whether all of its results are there, so that it need not be read."""
        ...

    def problem(self, item: Item) -> GitfastError | None:
        """Say why the results of an input cannot be kept; asked once for each, before it is read."""
        ...

    def write(self, item: Item, results: Sequence[Result]) -> None:
        """Write the results of one input, one per question. Raises ``OutputError``, and leaves the file whole."""
        ...

    def close(self, *, complete: bool) -> None:
        """End the output; ``complete`` where all inputs were done or failed."""
        ...


class StreamOutput:
    """Results on a text stream: there is nothing to continue.

    Args:
        stream: Standard output.
        format_item: Gives the lines of an input, without their ends.
        before: Called before something is written.
    """

    def __init__(
        self,
        stream: TextIO,
        format_item: Callable[[Item, Sequence[Result]], list[str]],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._format = format_item
        self._before = before

    def has(self, names: Sequence[str]) -> Sequence[bool]:
        return [False] * len(names)

    def problem(self, item: Item) -> GitfastError | None:
        return None

    def write(self, item: Item, results: Sequence[Result]) -> None:
        lines = self._format(item, results)
        if not lines:
            return
        self._before()
        try:
            self._stream.write("".join(line + "\n" for line in lines))
            self._stream.flush()
        except BrokenPipeError:  # the reader has left, which is no error of ours
            raise
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise OutputError(f"standard output: {getattr(error, 'strerror', None) or 'closed'}") from None

    def close(self, *, complete: bool) -> None:
        pass


class LineFile:
    """A file with one line per result, which a later run continues.

    With ``existing`` "skip", lines are added to the file, and inputs whose results are there are passed by. Otherwise a
    file beside it is written, continued by later runs until one is complete, and then put in its place: with
    "overwrite" as it is; with "append" and "prepend" texts are joined with those of the file before, whose other lines
    follow.

    Another run cannot open the file meanwhile. ``fresh`` forgets what is there.

    Raises:
        OutputError: the file cannot be opened, is in use by another run, or holds a line that is no record.
    """

    def __init__(
        self,
        path: str,
        records: Records,
        questions: Questions = (None,),
        *,
        existing: Existing = "skip",
        separator: str = ", ",
        fresh: bool = False,
    ) -> None:
        self.path = path
        self.keys = KeySet()
        self._fresh = fresh
        self._records, self._questions = records, questions
        self._existing, self._separator = existing, separator
        self._old: _OldLines | None = None
        in_place = existing == "skip" or (os.path.exists(path) and not os.path.isfile(path))
        self._written_path = path if in_place else f"{path}.{existing}-part"
        self._file = _open_to_continue(self._written_path)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        self._regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        if not self._regular:  # a device or a pipe: written to, and never read
            self._size = 0
            return
        if not lock(self._file):
            raise OutputError(f"{self._written_path}: another run is writing it")
        if self._fresh:
            self._file.truncate(0)
        keys, self._size = array("q"), 0
        for offset, lines in _lines(self._file, self._written_path, self._records):
            keys.extend(_keys(self._records, lines, offset, self._written_path))
            self._size = offset + sum(map(len, lines)) + len(lines)
        self.keys.load(keys)
        with _naming(self._written_path):
            if self._file.seek(0, os.SEEK_END) < self._size:  # the last line lacks its end
                self._file.write(b"\n")
            self._file.truncate(self._size)
            self._file.seek(self._size)
        if self._existing in ("append", "prepend") and os.path.exists(self.path):
            self._old = _OldLines(self.path, self._records)

    def has(self, names: Sequence[str]) -> Sequence[bool]:
        found = np.ones(len(names), bool)
        for question in self._questions:
            found &= self.keys.contains(self._records.keys_of(names, question))
        return found.tolist()

    def problem(self, item: Item) -> GitfastError | None:
        return None

    def write(self, item: Item, results: Sequence[Result]) -> None:
        lines = []
        for question, result in zip(self._questions, results, strict=True):
            key = self._records.key_of(item.name, question)
            if key in self.keys:  # the run before was killed between the answers about one input
                continue
            if self._old is not None:
                if (old := self._old.text(key)) is not None:
                    result = dataclasses.replace(result, text=self._joined(old, result.text))
                self.keys.add(key)
            lines.append(self._records.line(item.name, question, result) + b"\n")
        self._append(b"".join(lines))

    def _joined(self, old: str, new: str) -> str:
        return joined(old, new, self._existing, self._separator)

    def _append(self, data: bytes) -> None:
        """Add whole lines, or nothing."""
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if self._regular:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)
                    self._file.seek(self._size)
            raise OutputError(f"{self._written_path}: {error.strerror}") from None
        self._size += len(data)

    def close(self, *, complete: bool) -> None:
        with self._file, _naming(self._written_path):
            if self._regular:
                if complete and self._old is not None:
                    for line in self._old.others(self.keys):
                        self._append(line + b"\n")
                os.fsync(self._file.fileno())
            if self._old is not None:
                self._old.close()
            if complete and self._written_path != self.path:
                if os.path.exists(self.path):
                    os.chmod(self._written_path, stat.S_IMODE(os.stat(self.path).st_mode))
                rename_open(self._file, self._written_path, self.path)


class _OldLines:
    """The lines of a file by key, for texts that are joined with them; the file is not changed meanwhile."""

    def __init__(self, path: str, records: Records) -> None:
        self._path, self._records = path, records
        keys, offsets = array("q"), array("q")
        self._file = open_regular(path, OutputError)  # for as long as the output
        for offset, lines in _lines(self._file, path, records):
            keys.extend(_keys(records, lines, offset, path))
            for line in lines:
                offsets.append(offset)
                offset += len(line) + 1
        order = np.argsort(np.frombuffer(keys, np.int64), kind="stable") if keys else np.zeros(0, np.int64)
        self._keys = np.frombuffer(keys, np.int64)[order] if keys else order
        self._offsets = np.frombuffer(offsets, np.int64)[order] if keys else order

    def text(self, key: int) -> str | None:
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        self._file.seek(int(self._offsets[place]))
        return self._records.text(self._file.readline().removesuffix(b"\n"))

    def close(self) -> None:
        self._file.close()

    def others(self, keys: KeySet) -> Iterator[bytes]:
        """Yield the lines whose keys are not among ``keys``, in their order."""
        for _, lines in _lines(self._file, self._path, self._records):
            known = keys.contains(list(self._records.keys(lines)))
            yield from (line for line, is_known in zip(lines, known, strict=True) if not is_known)


class SidecarFiles:
    """A text file for each input, beside it or in a folder of its own; complete or not there.

    Several answers are one a line. Two inputs whose names differ in the extension only would share a file: the second
    is an error.

    Args:
        extension: The files' extension: ".txt".
        folder: The folder for them, under the names of the inputs; None: beside the inputs.
        root: The folder that names of inputs are relative to, if not the current one.
        existing: "skip" passes by inputs whose file is there; "append" and "prepend" join the texts.
        journal: With "append" and "prepend", a file that says which texts have been joined, so that a run that is
            killed is continued and joins none twice; removed when a run is complete.
    """

    def __init__(
        self,
        extension: str,
        *,
        folder: str | None = None,
        root: str | None = None,
        existing: Existing = "skip",
        separator: str = ", ",
        journal: str | None = None,
    ) -> None:
        self._extension, self._folder, self._root = extension, folder, root
        self._existing, self._separator = existing, separator
        self._names: dict[int, int] = {}  # the input that has a file, by hashes
        if folder is not None:
            with _naming(folder):
                os.makedirs(folder, exist_ok=True)
        self._journal = Journal(journal) if journal is not None and existing in ("append", "prepend") else None

    def target(self, name: str) -> str:
        """Return the path of an input's file."""
        stem = os.path.splitext(name)[0]
        if self._folder is None:
            return os.path.join(self._root or "", stem) + self._extension
        parts = stem.split("/")
        if stem.startswith("/") or ".." in parts:  # never out of the folder, whatever a shard or list names
            stem = parts[-1]
        return os.path.join(self._folder, stem) + self._extension

    def has(self, names: Sequence[str]) -> Sequence[bool]:
        return [self._has(name) for name in names]

    def _has(self, name: str) -> bool:
        target = self.target(name)
        if self._names.setdefault(hash(target), hash(name)) != hash(name):
            return False  # ``problem`` says why
        if self._existing == "skip":
            return os.path.lexists(target)
        return self._journal is not None and self._journal.has(target)

    def problem(self, item: Item) -> GitfastError | None:
        target = self.target(item.name)
        if self._names.get(hash(target)) != hash(item.name):
            return OutputError(f"{item.path}: another input has the same name but for its extension, and {target}")
        if item.in_shard and self._folder is None:
            return OutputError(f"{item.path}: a file in a shard has no folder to write to; give one")
        return None

    def write(self, item: Item, results: Sequence[Result]) -> None:
        target = self.target(item.name)
        text = "\n".join(printable(result.text) for result in results)
        try:
            os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            if self._existing in ("append", "prepend"):
                text = joined(_read_text(target), text, self._existing, self._separator)
            data = (text + "\n").encode("utf-8", "surrogateescape")
            if self._journal is not None:
                self._journal.add(target, data)
            _write_whole(target, data)
        except OutputError:
            raise
        except OSError as error:
            kind = OutputError if error.errno in _FATAL else ItemOutputError
            raise kind(f"{target}: {error.strerror or error}") from None

    def close(self, *, complete: bool) -> None:
        if self._journal is not None:
            self._journal.close(remove=complete)


class Journal:
    """A journal of contents given to files, noted before they are written: a line of a digest and a path each."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._digests: dict[int, bytes] = {}
        with _naming(path):
            check_regular(path)  # a pipe would be waited for
            self._file = io.BufferedRandom(_open_to_continue(path))
            if not lock(self._file):
                self._file.close()
                raise OutputError(f"{path}: another run is writing it")
            size = 0
            for line in self._file:
                digest, _, target = line.partition(b" ")
                if not line.endswith(b"\n") or len(digest) != 32:
                    break
                self._digests[hash(os.fsdecode(bytes.fromhex(target.decode())))] = bytes.fromhex(digest.decode())
                size += len(line)
            self._file.seek(size)
            self._file.truncate()

    def has(self, target: str) -> bool:
        """Return whether the file has the content that it was given."""
        digest = self._digests.get(hash(target))
        if digest is None:
            return False
        try:
            with open_regular(target, ItemOutputError) as file:
                return _digest(file.read(_MAX_SIDECAR_BYTES + 1)) == digest
        except OSError:
            return False

    def add(self, target: str, content: bytes) -> None:
        self._file.write(_digest(content).hex().encode() + b" " + os.fsencode(target).hex().encode() + b"\n")
        self._file.flush()

    def close(self, *, remove: bool) -> None:
        self._file.close()
        if remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def joined(old: str, new: str, existing: Existing, separator: str) -> str:
    """Join a text with the one before; without one there is nothing to join."""
    if not old:
        return new
    return f"{old}{separator}{new}" if existing == "append" else f"{new}{separator}{old}"


def check_regular(path: str) -> None:
    """Raise ``OutputError`` where something that is no regular file has this name."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OutputError(f"{path}: not a regular file")


def _open_to_continue(path: str) -> io.FileIO:
    """Open a file for reading and writing, or a device; a pipe for writing, and only while somebody reads it.

    Raises:
        OutputError: it cannot be opened, or is a pipe that nobody reads: writing to it would wait without end.
    """
    with _naming(path):
        if sys.platform == "win32":
            return os.fdopen(os.open(path, OPEN_TO_CONTINUE, 0o666), "r+b", 0)
        if not os.path.exists(path) or not stat.S_ISFIFO(os.stat(path).st_mode):
            nonblock = getattr(os, "O_NONBLOCK", 0)
            file = NonBlockingFile(os.open(path, OPEN_TO_CONTINUE | nonblock, 0o666), "r+b")
            if nonblock and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device is only written to
                os.set_blocking(file.fileno(), True)
            return file
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise OutputError(f"{path}: nobody reads this pipe") from None
        os.set_blocking(pipe, True)
        return os.fdopen(pipe, "wb", 0)


def _lines(file: IO[bytes], path: str, records: Records) -> Iterator[tuple[int, list[bytes]]]:
    """Read whole lines of a file, many at a time: (offset of the first, lines without ends).

    Raises:
        OutputError: it cannot be read, or ends in something that is no beginning of a line.
    """
    offset, rest = 0, b""
    with _naming(path):
        file.seek(0)
        while block := file.read(_SCAN_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            if lines:
                yield offset, lines
                offset += sum(map(len, lines)) + len(lines)
    if records.is_whole(rest):
        yield offset, [rest]
    elif rest.strip(b"\0") and not records.may_begin(rest, offset):  # NUL bytes, as a crash of the machine leaves them
        raise OutputError(f"{path}: its end, at byte {offset}, is no result")


def _keys(records: Records, lines: list[bytes], offset: int, path: str) -> list[int]:
    """Return the keys of lines that begin at ``offset``; the error about a bad one gives its place."""
    try:
        return list(records.keys(lines))
    except RecordError:
        for line in lines:
            try:
                records.key(line)
            except RecordError as error:
                raise OutputError(f"{path}: the line at byte {offset} is no result: {error}") from None
            offset += len(line) + 1
        raise


def _write_whole(target: str, data: bytes) -> None:
    """Write a file so that it has all of its content or is not there; what it was before stays until then.

    Raises:
        OutputError: another process is writing it.
    """
    folder, name = os.path.split(target)
    # One name per file, so that the next run reuses a killed run's.
    temporary = os.path.join(folder, f".{zlib.crc32(os.fsencode(name)):08x}.gitfast-part")
    with open(temporary, "ab") as file:
        if not lock(file) or not _is_at(temporary, file):
            raise OutputError(f"{target}: another run is writing it")
        try:
            file.truncate(0)
            file.write(data)
            file.flush()
            rename_open(file, temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _is_at(path: str, file: IO[bytes]) -> bool:
    """Return whether an open file still has that name: whoever held its lock may have renamed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _read_text(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open_regular(path, ItemOutputError) as file:
        data = file.read(_MAX_SIDECAR_BYTES + 1)
    if len(data) > _MAX_SIDECAR_BYTES:
        raise OSError(errno.EFBIG, f"more than {_MAX_SIDECAR_BYTES} bytes")
    return data.decode("utf-8", "surrogateescape").rstrip("\n")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn errors of the file system into ``OutputError``, which names the file."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from None
