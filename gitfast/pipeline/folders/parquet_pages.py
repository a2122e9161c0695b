"""Check the pages of parquet files before pyarrow allocates what their headers state.

A page's header states how many bytes follow and how many they become; pyarrow allocates both, up to 2 GB each, before
it looks at a byte. It tells of neither, and its ``ColumnChunkMetaData`` of a hostile file can end the process. So the
few numbers that are needed are read here, from structs of Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
from typing import IO, Any

_MAX_PAGE_BYTES = 1 << 28  # of memory; or _MAX_RATIO times what the page takes in the file, if that is more
_MAX_RATIO = 4  # encoded images hardly get smaller
_MAX_HEADER_BYTES = 1 << 24  # as pyarrow has it: a header may hold the least and the greatest value
_MAX_FOOTER_BYTES = 1 << 24
_MAX_DEPTH = 16  # of structs and lists; those of a file's metadata are seven deep

# Fields by number: of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData and PageHeader.
_ROW_GROUPS = 4
_COLUMNS = 1
_META_DATA = 3
_TOTAL_COMPRESSED_SIZE, _DATA_PAGE_OFFSET, _DICTIONARY_PAGE_OFFSET = 7, 9, 11
_UNCOMPRESSED_PAGE_SIZE, _COMPRESSED_PAGE_SIZE = 2, 3


class PageError(ValueError):
    """A page or the file's metadata is damaged, or larger than is read."""


class ParquetPages:
    """The pages of a parquet file.

    Args:
        data: The open file, of which nothing but the metadata and the pages' headers is read. It is kept.

    Raises:
        PageError: the metadata is damaged or too large.
    """

    def __init__(self, data: IO[bytes]) -> None:
        self._data = data
        self._size = os.fstat(data.fileno()).st_size
        tail = self._read(max(0, self._size - 8), 8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > self._size - 12:
            raise PageError("not a parquet file, or damaged")
        if length > _MAX_FOOTER_BYTES:
            raise PageError(f"metadata of {length} bytes; at most {_MAX_FOOTER_BYTES} are read")
        try:
            footer = _Compact(self._read(self._size - 8 - length, length)).struct()
            self._groups = _structs(footer, _ROW_GROUPS)
        except IndexError:
            raise PageError("not a parquet file, or damaged metadata") from None

    def _read(self, position: int, count: int) -> bytes:
        self._data.seek(position)  # as pyarrow does before it reads, when they share a file
        return self._data.read(count)

    def check(self, group: int) -> int:
        """Walk the pages of a row group, all columns of it, and return what the largest becomes: no value is larger.

        Raises:
            PageError: a page is no page, ends behind the file, or becomes too large.
        """
        largest = 0
        if group < len(self._groups):
            for column in _structs(self._groups[group], _COLUMNS):
                if not isinstance(chunk := column.get(_META_DATA, {}), dict):
                    raise PageError("damaged metadata: a column that is no struct")
                largest = max(largest, self._check_column(chunk))
        return largest

    def _check_column(self, column: dict[int, Any]) -> int:
        position = _number(column, _DATA_PAGE_OFFSET)
        if 0 < (dictionary := _number(column, _DICTIONARY_PAGE_OFFSET)) < position:
            position = dictionary
        end = position + _number(column, _TOTAL_COMPRESSED_SIZE)
        if not 0 <= position <= end <= self._size:
            raise PageError(f"a column of bytes {position} to {end}, in a file of {self._size}")
        largest = 0
        while position < end:
            header, length = self._read_header(position)
            position += length
            stored, becomes = _number(header, _COMPRESSED_PAGE_SIZE), _number(header, _UNCOMPRESSED_PAGE_SIZE)
            if not 0 <= stored <= self._size - position:
                raise PageError(f"a page of {stored} bytes, in a file with {self._size - position} more")
            if not 0 <= becomes <= max(_MAX_PAGE_BYTES, _MAX_RATIO * stored):
                raise PageError(f"a page that becomes {becomes} of {stored} bytes")
            position += stored
            largest = max(largest, becomes)
        return largest

    def _read_header(self, position: int) -> tuple[dict[int, Any], int]:
        window = 1 << 10
        while True:
            data = self._read(position, window)
            reader = _Compact(data)
            try:
                return reader.struct(), reader.position
            except IndexError:
                if len(data) < window or window >= _MAX_HEADER_BYTES:
                    raise PageError("a damaged page") from None
                window *= 4


def _number(struct: dict[int, Any], field: int) -> int:
    value = struct.get(field, 0)
    return value if isinstance(value, int) else -1


def _structs(struct: dict[int, Any], field: int) -> list[dict[int, Any]]:
    value = struct.get(field, [])
    return value if isinstance(value, list) else []


_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class _Compact:
    """Read whole numbers, structs, and lists of structs; skip all else.

    Raises:
        IndexError: the data end too early.
        PageError: the data are no structs.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct: values by field."""
        if depth > _MAX_DEPTH:
            raise PageError("damaged: structs within structs")
        fields: dict[int, Any] = {}
        field = 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else _signed(self._varint())
            kind &= 15
            if field in fields:  # which one counts would depend on their kinds
                raise PageError("damaged: a field that comes twice")
            # The kind of a field that is true or false is its value.
            fields[field] = None if kind in (_TRUE, _FALSE) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._skip(1)
        if kind in (_I16, _I32, _I64):
            return _signed(self._varint())
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _STRUCT:
            return self.struct(depth)
        raise PageError("damaged: a value of no kind that parquet has")  # parquet has no maps

    def _list(self, depth: int) -> list[dict[int, Any]] | None:
        kind = self._byte()
        count, kind = kind >> 4, kind & 15
        if count == 15:
            count = self._varint()
        if count > len(self._data) - self.position or depth > _MAX_DEPTH:  # each takes a byte at least
            raise IndexError
        if kind == _STRUCT:
            return [self.struct(depth + 1) for _ in range(count)]
        for _ in range(count):
            self._value(kind, depth + 1)
        return None

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise PageError("damaged: a number of more than 64 bits")


def _signed(zigzag: int) -> int:
    return (zigzag >> 1) ^ -(zigzag & 1)
