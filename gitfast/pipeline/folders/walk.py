"""The inputs that paths stand for: files, folders, patterns, lists of files and shards, found one after another."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gitfast.errors import GitfastError, ImageError
from gitfast.pipeline.folders.names import shard_of
from gitfast.pipeline.folders.shards import SHARD_SUFFIXES, read_shard

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".gif", ".webp")

_MAX_NAMED = 10  # folders that cannot be read, named in a report; the others are counted
_TEMPORARY = re.compile(r"\..*gitfast-.*part\Z")  # leftovers of killed runs
_FILES_AT_ONCE = 1024  # asked about together
_READ_BYTES = 1 << 16
_MAX_BLANK_NAMES = 1 << 20  # in a list of files, one after another
_MAX_NAME_BYTES = 1 << 16  # in a line of a list of files; Linux takes paths of 4,096


class Readable(Protocol):
    """A binary file, or an object that reads like one. A pipe should give the bytes it has, as ``read1`` does."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        name: Its name in outputs; see ``Walk``.
        path: The file, or the shard and the name in it, for messages.
        source: The path, the encoded bytes of a file in a shard, or the error of reading it.
        in_shard: It is no file of its own.
    """

    name: str
    path: str
    source: str | bytes | GitfastError
    in_shard: bool = False


@dataclass
class WalkReport:
    """The files and folders that a walk passed by.

    Attributes:
        unreadable: The first folders that could not be read, each with the reason; ``num_unreadable`` counts all.
        skipped: Number of files in folders by extension, which are not read.
        irregular: Number of pipes, sockets, devices and broken links in folders.
        linked_folders: Number of links to folders that were not followed.
    """

    unreadable: list[str] = field(default_factory=list)
    num_unreadable: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    irregular: int = 0
    linked_folders: int = 0

    def add_unreadable(self, folder: str, error: OSError) -> None:
        self.num_unreadable += 1
        if len(self.unreadable) < _MAX_NAMED:
            self.unreadable.append(f"{folder}: {error.strerror or error}")


@dataclass(kw_only=True)
class Walk:
    """An iterable of the inputs that paths stand for, each found as it is needed; sorted within each path.

    The names in one folder at a time are held. A path that does not exist is an item whose reading is an error.

    Attributes:
        paths: Files, folders, patterns, shards (WebDataset tar files, parquet files).
        suffixes: Suffixes of the files to take in folders and shards, lower case.
        recursive: Go into the folders of folders.
        follow_links: Go into links to folders, too; a folder within itself is entered once.
        relative: If one path is given and is a folder, make names relative to it; otherwise they are paths.
        files_from: A binary file of paths, one a line or separated by NUL bytes. They are taken as ``paths`` are, but
            for patterns.
        null: ``files_from`` is separated by NUL bytes; False looks whether its first bytes hold one.
        shard: (index, count): take the inputs only whose names fall to this one of ``count`` shards; None: all.
        image_column: The column of parquet files; None: the only one that can be.
        ignored: Full paths of files in folders that are neither inputs nor worth counting: outputs of this run.
        ignored_suffix: Files in folders with it are not worth counting, either.
        skip: Tells by their names which inputs to pass by. It is asked before an input is read, once for each.
    """

    paths: Sequence[str]
    suffixes: Sequence[str]
    recursive: bool = False
    follow_links: bool = False
    relative: bool = False
    files_from: Readable | None = None
    null: bool = False
    shard: tuple[int, int] | None = None
    image_column: str | None = None
    ignored: frozenset[str] = frozenset()
    ignored_suffix: str | None = None
    skip: Callable[[Sequence[str]], Sequence[bool]] = lambda names: [False] * len(names)
    report: WalkReport = field(default_factory=WalkReport)

    def __post_init__(self) -> None:
        self._suffixes = tuple(self.suffixes)
        self._ignored_names = {os.path.basename(path) for path in self.ignored}

    def __iter__(self) -> Iterator[Item]:
        root = self.root
        for paths in self._listed():
            for path, skipped in zip(paths, self.skip(paths), strict=True):
                if not skipped:
                    yield from self._items_of(path, root)

    def _listed(self) -> Iterator[list[str]]:
        """Yield the paths that are given, some at a time."""
        for path in self.paths:
            if os.path.lexists(path) or not glob.has_magic(path):
                yield [path]
            else:
                yield sorted(glob.glob(path, recursive=self.recursive)) or [path]
        if self.files_from is not None:
            yield from read_names(self.files_from, null=self.null)

    def count(self) -> int | None:
        """Count the inputs, those to be skipped too; None where only reading, or two walks, would tell."""
        if self.files_from is not None or self.shard is not None:
            return None
        total = 0
        for path in self.paths:
            matches = [path] if os.path.lexists(path) or not glob.has_magic(path) else glob.glob(path)
            for match in matches or [path]:
                if match.lower().endswith(SHARD_SUFFIXES):
                    return None
                total += self._count_in(match) if os.path.isdir(match) else 1
        return total

    def _count_in(self, folder: str) -> int:
        total, folders = 0, [folder]
        while folders:
            path = folders.pop()
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        kind = self._kind_of(entry)
                        total += kind == "input"
                        if kind == "folder" and not entry.is_symlink():  # links may lead in circles
                            folders.append(entry.path)
            except OSError:
                continue
        return total

    @property
    def root(self) -> str | None:
        """The folder that names are relative to; None: they are paths."""
        if self.relative and self.files_from is None and len(self.paths) == 1 and os.path.isdir(self.paths[0]):
            return self.paths[0]
        return None

    def _items_of(self, path: str, root: str | None) -> Iterator[Item]:
        """Yield the items of a path that is not to be skipped itself."""
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or "not a valid path"
            mode = 0
            source: str | GitfastError = ImageError(f"{path}: {reason}")
        else:
            source = path if stat.S_ISREG(mode) else ImageError(f"{path}: not a regular file")
        if stat.S_ISDIR(mode):
            yield from self._files_in(path, "" if root == path else path)
        elif stat.S_ISREG(mode) and path.lower().endswith(SHARD_SUFFIXES):
            yield from self._shard_items(path)
        elif self._is_here(path):
            yield Item(path, path, source)

    def _is_wanted(self, name: str) -> bool:
        return self._is_here(name) and not self.skip([name])[0]

    def _is_here(self, name: str) -> bool:
        return self.shard is None or shard_of(name, self.shard[1]) == self.shard[0]

    def _files_in(self, folder: str, prefix: str) -> Iterator[Item]:
        """Yield the files of a folder in the order of their paths; ``prefix`` is the folder in their names."""
        # Folders being walked: (path, prefix, names still to come, last first; a folder's ends with a separator).
        stack: list[tuple[str, str, list[str]]] = []
        entered: list[tuple[int, int]] = []  # the same folders, by device and inode

        def enter(path: str, prefix: str) -> None:
            try:
                status = os.stat(path)
                key = (status.st_dev, status.st_ino)
                if key in entered:
                    return
                names = self._list(path)
            except OSError as error:
                self.report.add_unreadable(path, error)
                return
            stack.append((path, prefix, names))
            entered.append(key)

        enter(folder, prefix)
        while stack:
            path, prefix, names = stack[-1]
            if not names:
                stack.pop()
                entered.pop()
            elif names[-1].endswith("/"):
                entry = names.pop()[:-1]
                enter(os.path.join(path, entry), _under(prefix, entry))
            else:
                yield from self._files_among(path, prefix, _pop_files(names))

    def _files_among(self, path: str, prefix: str, entries: list[str]) -> Iterator[Item]:
        """Yield the items of some files in a folder, those to be skipped left out."""
        if self.shard is not None:
            entries = [entry for entry in entries if self._is_here(_under(prefix, entry))]
        start = _under(prefix, "")
        names = [start + entry for entry in entries] if start else entries
        for name, entry, skipped in zip(names, entries, self.skip(names), strict=True):
            if not skipped:
                file = os.path.join(path, entry)
                yield Item(name, file, file)

    def _list(self, folder: str) -> list[str]:
        """List the names to visit in a folder, the last first; those of folders end with a separator."""
        names: list[str] = []
        suffixes, ignored, kind_of = self._suffixes, self._ignored_names, self._kind_of
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                # First the common case, of which there may be a million; everything else in full.
                if not entry.is_symlink() and entry.is_file() and name.endswith(suffixes) and name not in ignored:
                    names.append(name)
                    continue
                kind = kind_of(entry)
                if kind == "input":
                    names.append(name)
                elif kind == "folder":
                    names.append(name + "/")
                else:
                    self._count_passed(name, kind)
        names.sort(reverse=True)
        return names

    def _count_passed(self, name: str, kind: str) -> None:
        if kind == "other":
            self.report.skipped[os.path.splitext(name)[1].lower()[:20] or "(none)"] += 1
        elif kind == "irregular":
            self.report.irregular += 1
        elif kind == "link":
            self.report.linked_folders += 1

    def _kind_of(self, entry: os.DirEntry[str]) -> Literal["input", "folder", "other", "irregular", "link", "ignored"]:
        try:
            if entry.is_file():
                name = entry.name
                if name in self._ignored_names and os.path.abspath(entry.path) in self.ignored:
                    return "ignored"
                if name.lower().endswith(self._suffixes):
                    return "input"
                is_output = self.ignored_suffix is not None and name.endswith(self.ignored_suffix)
                return "ignored" if is_output or _TEMPORARY.match(name) else "other"
            if entry.is_dir():
                if not self.recursive:
                    return "ignored"
                return "folder" if self.follow_links or not entry.is_symlink() else "link"
        except OSError:  # a link in a loop
            pass
        return "irregular"

    def _shard_items(self, path: str) -> Iterator[Item]:
        def wanted(member: str) -> bool:
            return self._is_wanted(f"{path}/{member}")

        for member, source in read_shard(path, self.suffixes, wanted, self.image_column):
            name = f"{path}/{member}" if member else path
            yield Item(name, name, source, in_shard=True)


def _under(prefix: str, entry: str) -> str:
    """Return the name of an entry of a folder named ``prefix``."""
    return f"{prefix}/{entry}" if prefix and not prefix.endswith("/") else prefix + entry


def _pop_files(names: list[str]) -> list[str]:
    """Take files from the end of names, some at most, up to the next folder."""
    files: list[str] = []
    while names and len(files) < _FILES_AT_ONCE and not names[-1].endswith("/"):
        files.append(names.pop())
    return files


def read_names(file: Readable, *, null: bool = False) -> Iterator[list[str]]:
    """Read paths from a binary file, as many together as a read gives.

    They are one a line, or separated by NUL bytes where there is one in the first read.

    Raises:
        ImageError: a name that is too long, or megabytes without a name, as a device of zeros has.
    """
    rest = file.read(_READ_BYTES)
    separator = b"\0" if null or b"\0" in rest else b"\n"
    blank = 0
    while rest:
        *names, rest = rest.split(separator)
        found = _decoded(names, separator)
        yield found
        blank = 0 if found or rest else blank + len(names)
        if blank > _MAX_BLANK_NAMES:
            raise ImageError(f"list of files: more than {_MAX_BLANK_NAMES} empty names in a row")
        if len(rest) > _MAX_NAME_BYTES:
            raise ImageError(f"list of files: a name of more than {_MAX_NAME_BYTES} bytes")
        if not (more := file.read(_READ_BYTES)):
            yield _decoded([rest], separator)
            return
        rest += more


def _decoded(names: list[bytes], separator: bytes) -> list[str]:
    if separator == b"\n":
        names = [name.removesuffix(b"\r") for name in names]
    return [os.fsdecode(name) for name in names if name]
