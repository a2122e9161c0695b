"""Inputs that lie in one file: WebDataset's tar shards, and parquet files with a column of images.

Shards are hostile like everything that is read: names, sizes and headers are bounded, and nothing is unpacked to disk.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from gitfast.checkpoints.files import open_regular
from gitfast.errors import GitfastError, ImageError
from gitfast.pipeline.folders.parquet_pages import PageError, ParquetPages

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SHARD_SUFFIXES = (*TAR_SUFFIXES, ".parquet")

Member = tuple[str, bytes | GitfastError]

_MAX_MEMBER_BYTES = 500_000_000  # as of a video file; images have a limit of their own
_MAX_HEADER_BYTES = 1 << 20  # in the extended headers of one member, which tarfile reads at once
_ROWS_AT_ONCE = 2  # from a parquet file: images in memory, which may all be one image of its dictionary


def read_shard(
    path: str, suffixes: Sequence[str], wanted: Callable[[str], bool], image_column: str | None = None
) -> Iterator[Member]:
    """Read the inputs in a shard, in its order: (name, encoded bytes or the error of reading them).

    Args:
        path: A tar file, gzipped or not, or a parquet file.
        suffixes: Suffixes of the members of a tar file to take, lower case.
        wanted: Asked by name, before a member's bytes are read.
        image_column: The column of a parquet file; None: the only one of binary data, or of images as in datasets.

    A shard that is damaged, or is not one, gives the members before and then ("", error).
    """
    if path.lower().endswith(TAR_SUFFIXES):
        yield from _read_tar(path, tuple(suffixes), wanted)
    else:
        yield from _read_parquet(path, wanted, image_column)


def _read_tar(path: str, suffixes: tuple[str, ...], wanted: Callable[[str], bool]) -> Iterator[Member]:
    last = "its beginning"
    try:
        with open_regular(path, ImageError) as packed, _unpacked(packed, path) as file:
            headers = _TarHeaders(file)
            tar = tarfile.open(fileobj=cast(Any, headers), mode="r:")  # noqa: SIM115, the file is closed
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # tarfile keeps them all
                name = member.name
                if member.size < 0:  # the next header would be this one again
                    raise tarfile.ReadError("negative size")
                if not (member.isreg() and name.lower().endswith(suffixes) and wanted(name)):
                    continue
                if member.size > _MAX_MEMBER_BYTES or member.issparse():
                    problem = "sparse" if member.issparse() else f"more than {_MAX_MEMBER_BYTES} bytes"
                    yield name, ImageError(f"{path}/{name}: {problem}")
                    continue
                file.seek(member.offset_data)
                data = file.read(member.size)
                if len(data) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield name, data
                last = name
            if headers.last.strip(b"\0"):  # a block of zeros ends an archive; tarfile takes anything else, too
                raise tarfile.ReadError("damaged header")
    except ImageError as error:
        yield "", error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or "not a tar file, or damaged"
        yield "", ImageError(f"{path}: {reason} (after {last})")


def _unpacked(file: IO[bytes], path: str) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if path.lower().endswith("gz") else file


class _TarHeaders:
    """A tar file as tarfile may read it: headers only, whose extensions state their own length."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self.last = b""  # block

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("header too large")
        self.last = self._read(size)
        return self.last


def _read_parquet(path: str, wanted: Callable[[str], bool], image_column: str | None) -> Iterator[Member]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        yield "", ImageError(f'{path}: reading parquet needs pyarrow: pip install "gitfast[parquet]"')
        return
    row = 0
    try:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(open_regular(path, ImageError))
            pages = ParquetPages(opened)  # before pyarrow parses the metadata: they are bounded here
            file = stack.enter_context(pq.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20))
            columns = _image_columns(path, file.schema_arrow, image_column)
            for group in range(file.num_row_groups):
                pages.check(group)
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    for value in batch.column(0):
                        name = str(row)
                        row += 1
                        if wanted(name):
                            yield name, _image_of(f"{path}/{name}", value.as_py())
    except ImageError as error:
        yield "", error
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "not a parquet file, or damaged"
        if isinstance(error, PageError):
            reason = str(error)
        yield "", ImageError(f"{path}: {reason} (after row {row})")


def _image_columns(path: str, schema: Any, asked: str | None) -> list[str]:
    """Name what is read of the column of images: a list in its struct may become gigabytes in one row."""
    import pyarrow as pa

    column = _image_column(path, schema, asked)
    kind = schema.types[schema.names.index(column)]
    fields = list(kind) if pa.types.is_struct(kind) else []
    plain = [field.name for field in fields if not pa.types.is_nested(field.type)]
    parts = [f"{column}.{name}" for name in ("bytes", "path") if name in plain] or [column]
    read = {column, *parts}
    if sum(name in read for name in (*schema.names, *(f"{column}.{field.name}" for field in fields))) > len(read):
        raise ImageError(f"{path}: several columns, or parts of one, share the name of {column!r}")  # all are read
    return parts


def _image_column(path: str, schema: Any, asked: str | None) -> str:
    """Find the top-level column of images: binary, or a struct with binary ``bytes`` as datasets writes them."""
    import pyarrow as pa

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def holds_images(kind: Any) -> bool:
        return is_binary(kind) or (
            pa.types.is_struct(kind)
            and any(kind.field(i).name == "bytes" and is_binary(kind.field(i).type) for i in range(kind.num_fields))
        )

    found = [field.name for field in schema if holds_images(field.type)]
    if asked is not None:
        if asked in found:
            return asked
        raise ImageError(f"{path}: its column {asked!r} does not hold images; columns that do: {', '.join(found)}")
    if len(found) == 1:
        return found[0]
    if "image" in found:
        return "image"
    columns = ", ".join(found or schema.names)[:500]
    raise ImageError(f"{path}: {'several columns hold' if found else 'no column holds'} images: {columns}")


def _image_of(name: str, value: Any) -> bytes | GitfastError:
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    if isinstance(value, dict) and isinstance(value.get("path"), (str, os.PathLike)):
        return ImageError(f"{name}: holds a path and no bytes; files that data names are not opened")
    return ImageError(f"{name}: holds no image")
