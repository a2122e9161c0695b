"""State dicts in torch's zip format (``torch.save``, since torch 1.6), read without torch and without running anything.

Such a file is an uncompressed zip archive: ``data.pkl`` describes nested dicts of tensors, ``data/<key>`` hold the
bytes of their storages. The pickle is interpreted here, not by ``pickle.Unpickler``, which even with a restricted
``find_class`` allocates gigabytes for ten bytes of input (a large memo index) or hashes for hours (nested tuples as
keys). Only the opcodes of plain data are known; a global name is looked up in the table below, never imported; and
only two functions can be "called", both ours. Work and memory are linear in the size of the pickle, which is bounded.
"""

from __future__ import annotations

import io
import math
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitfast.checkpoints.stored_tensor import MAX_DIMS, MAX_TENSORS, MappedFile, StoredTensor, itemsize, name_problem
from gitfast.errors import CheckpointError

_MAX_PICKLE_BYTES = 4 << 20  # that of the largest published checkpoint has 0.1 MB
_MAX_DIRECTORY_BYTES = 4 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def read_pickle(path: str | Path) -> dict[str, StoredTensor]:
    """All tensors of a state dict by name; a dict under the key "model" (Microsoft's files) is taken for it.

    Raises:
        CheckpointError: the file cannot be read, is damaged, is in torch's older format, or holds anything but a
            state dict; the message names the file.
    """
    file = MappedFile(path)
    try:
        archive = _Archive(file)
        state = _Unpickler(archive.pickle(), archive).load()
        if isinstance(state, dict) and isinstance(state.get("model"), dict):
            state = state["model"]
        return _tensors(state)
    except _FormatError as error:
        raise CheckpointError(f"{path}: {error}") from None


class _FormatError(Exception):
    """What is wrong, without the file's name."""


def _tensors(state: Any) -> dict[str, StoredTensor]:
    if not isinstance(state, dict) or not state:
        raise _FormatError(f"expected a dict of tensors, got {_shown(state)}")
    if len(state) > MAX_TENSORS:
        raise _FormatError(f"holds {len(state)} tensors; at most {MAX_TENSORS}")
    for name, value in state.items():
        if problem := name_problem(name):
            raise _FormatError(problem)
        if not isinstance(value, StoredTensor):
            raise _FormatError(f"{name}: expected a tensor, got {_shown(value)}")
    return state


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, (dict, list, tuple)) else reprlib.repr(value)


class _CappedFile(io.FileIO):
    """zipfile reads a whole directory at once, however long the file says it is."""

    def read(self, size: int | None = -1) -> bytes:
        least = _MAX_DIRECTORY_BYTES + 1
        data = super().read(least if size is None or size < 0 else min(size, least)) or b""
        if len(data) == least:
            raise zipfile.BadZipFile("the directory is too long")
        return data


class _Archive:
    """The records of the zip archive, each the bytes of a mapped file."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        start = file.read(0, min(file.size, 16)).tobytes()
        if start.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"):
            raise _FormatError("is in the format of torch before 1.6; load it there and save it with a newer torch")
        if not start.startswith(b"PK"):
            raise _FormatError("not a zip archive, so not saved by torch.save (or truncated at its start)")
        try:
            with _CappedFile(file.path) as stream, zipfile.ZipFile(stream) as archive:
                records = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, OSError, struct.error) as error:
            raise _FormatError(f"damaged or truncated zip archive: {error}") from None
        self._records = {record.filename: record for record in records}
        if len(self._records) < len(records):
            raise _FormatError("damaged zip archive: holds two records of one name")
        roots = [name.removesuffix("data.pkl") for name in self._records if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _FormatError(f"expected one record data.pkl as torch.save writes, found {len(roots)}")
        self._root = roots[0]
        if f"{self._root}byteorder" in self._records and self._bytes("byteorder") != b"little":
            raise _FormatError("was saved on a big-endian machine; only little-endian files are read")

    def pickle(self) -> bytes:
        return self._bytes("data.pkl")

    def storage(self, key: str, nbytes: int) -> int:
        """Where in the file the storage ``data/<key>`` of this size starts."""
        offset, size = self._locate(f"data/{key}")
        if size != nbytes:
            raise _FormatError(f"storage {reprlib.repr(key)}: expected {nbytes} bytes, the archive holds {size}")
        return offset

    def _bytes(self, name: str) -> bytes:
        offset, size = self._locate(name)
        if size > _MAX_PICKLE_BYTES:
            raise _FormatError(f"{name}: {size} bytes; at most {_MAX_PICKLE_BYTES}")
        data = self.file.read(offset, size).tobytes()
        if zlib.crc32(data) != self._records[self._root + name].CRC:
            raise _FormatError(f"{name}: damaged, its checksum is wrong")
        return data

    def _locate(self, name: str) -> tuple[int, int]:
        """Offset and size of a record that is stored as it is, after checking that it lies inside the file."""
        record = self._records.get(self._root + name)
        if record is None:
            raise _FormatError(f"the archive holds no record {reprlib.repr(name)}")
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise _FormatError(f"record {reprlib.repr(name)} is compressed or encrypted; torch.save does neither")
        header, size = record.header_offset, record.file_size
        if record.compress_size == size and 0 <= header <= self.file.size - _LOCAL_HEADER.size:
            local = self.file.read(header, _LOCAL_HEADER.size).tobytes()
            magic, name_length, extra_length = _LOCAL_HEADER.unpack(local)
            offset = header + _LOCAL_HEADER.size + name_length + extra_length
            if magic == b"PK\x03\x04" and offset + size <= self.file.size:
                return offset, size
        raise _FormatError(f"damaged or truncated zip archive: record {reprlib.repr(name)} does not lie inside it")


@dataclass(frozen=True)
class _Global:
    """A global name of the pickle: nothing but this name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    offset: int  # in the file
    numel: int


_ORDERED_DICT = _Global("collections.OrderedDict")
_REBUILD_TENSOR = _Global("torch._utils._rebuild_tensor_v2")
_REBUILD_PARAMETER = _Global("torch._utils._rebuild_parameter")
_STORAGES = {
    _Global("torch.DoubleStorage"): "float64",
    _Global("torch.FloatStorage"): "float32",
    _Global("torch.HalfStorage"): "float16",
    _Global("torch.BFloat16Storage"): "bfloat16",
    _Global("torch.LongStorage"): "int64",
    _Global("torch.IntStorage"): "int32",
    _Global("torch.ShortStorage"): "int16",
    _Global("torch.CharStorage"): "int8",
    _Global("torch.ByteStorage"): "uint8",
    _Global("torch.BoolStorage"): "bool",
}
_GLOBALS = {known.name: known for known in (_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER, *_STORAGES)}


class _Unpickler:
    """Interprets the opcodes that dicts, lists, tuples, numbers, strings and tensors are made of.

    The stack of the innermost MARK is ``stack``; those outside it wait in ``marked``.
    """

    def __init__(self, data: bytes, archive: _Archive) -> None:
        self.data = data
        self.archive = archive
        self.position = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        try:
            while (opcode := self.take(1)) != b".":
                if opcode not in _OPCODES:
                    raise _FormatError(f"its pickle has opcode {opcode!r}, which no state dict needs")
                _OPCODES[opcode](self)
            return self.stack.pop()
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise _FormatError(f"damaged pickle at byte {self.position}: {type(error).__name__}") from None

    def take(self, n: int) -> bytes:
        taken = self.data[self.position : self.position + n]
        if len(taken) < n:
            raise _FormatError("truncated pickle")
        self.position += n
        return taken

    def integer(self, n: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(n), "little", signed=signed)

    def text(self, n: int) -> str:
        return str(self.take(n), "utf-8")

    def line(self) -> str:
        return self.take(self.data.index(b"\n", self.position) + 1 - self.position)[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, n: int) -> tuple[Any, ...]:
        """The last ``n`` values, in the order they were pushed."""
        if len(self.stack) < n:
            raise IndexError
        values = tuple(self.stack[len(self.stack) - n :])
        del self.stack[len(self.stack) - n :]
        return values

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """The values since the last MARK."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        keys = values[::2]
        if type(self.stack[-1]) is not dict or len(values) % 2 or not all(type(key) in (str, int) for key in keys):
            raise TypeError
        self.stack[-1].update(zip(keys, values[1::2], strict=True))

    def find_global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _GLOBALS:
            raise _FormatError(f"refused: its pickle names {reprlib.repr(full)}; a state dict of tensors does not")
        self.push(_GLOBALS[full])

    def persistent(self) -> None:
        """A storage: ("storage", its class, key, the device it was on, number of elements)."""
        tag, kind, key, _, numel = self.stack.pop()
        if tag != "storage" or kind not in _STORAGES or type(key) is not str or type(numel) is not int or numel < 0:
            raise TypeError
        dtype = _STORAGES[kind]
        self.push(_Storage(dtype, self.archive.storage(key, numel * itemsize(dtype)), numel))

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if function == _ORDERED_DICT and arguments == ():
            self.push({})
        elif function == _REBUILD_TENSOR:
            self.push(self.tensor(*arguments))
        elif function == _REBUILD_PARAMETER and isinstance(arguments[0], StoredTensor):
            self.push(arguments[0])
        else:
            raise TypeError

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
        """What ``torch._utils._rebuild_tensor_v2`` would build, if all of it lies inside its storage."""
        sizes = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in sizes):
            raise TypeError
        if len(shape) != len(strides) or len(shape) > MAX_DIMS:
            raise TypeError
        if 0 in shape:
            raise _FormatError(f"a tensor of shape {shape} has no elements")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= storage.numel or math.prod(shape) > storage.numel:
            raise _FormatError(
                f"a tensor of shape {reprlib.repr(shape)}, strides {reprlib.repr(strides)} and offset {offset} exceeds "
                f"its storage of {storage.numel} elements"
            )
        start = storage.offset + offset * itemsize(storage.dtype)
        return StoredTensor(
            file=self.archive.file, offset=start, dtype=storage.dtype, shape=tuple(shape), strides=tuple(strides)
        )

    def build(self) -> None:
        """State of an object: of a dict, the module versions that torch attaches and nobody needs."""
        target, _ = self.pop(2)
        if type(target) is not dict:
            raise TypeError
        self.push(target)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


_OPCODES: dict[bytes, Callable[[_Unpickler], Any]] = {
    b"\x80": lambda u: u.take(1),  # PROTO
    b"\x95": lambda u: u.take(8),  # FRAME
    b"N": lambda u: u.push(None),
    b"\x88": lambda u: u.push(True),
    b"\x89": lambda u: u.push(False),
    b"J": lambda u: u.push(u.integer(4, signed=True)),  # BININT
    b"K": lambda u: u.push(u.integer(1)),  # BININT1
    b"M": lambda u: u.push(u.integer(2)),  # BININT2
    b"\x8a": lambda u: u.push(u.integer(u.integer(1), signed=True)),  # LONG1
    b"G": lambda u: u.push(struct.unpack(">d", u.take(8))[0]),  # BINFLOAT
    b"X": lambda u: u.push(u.text(u.integer(4))),  # BINUNICODE
    b"\x8c": lambda u: u.push(u.text(u.integer(1))),  # SHORT_BINUNICODE
    b"]": lambda u: u.push([]),
    b"}": lambda u: u.push({}),
    b")": lambda u: u.push(()),
    b"\x85": lambda u: u.push(u.pop(1)),  # TUPLE1
    b"\x86": lambda u: u.push(u.pop(2)),  # TUPLE2
    b"\x87": lambda u: u.push(u.pop(3)),  # TUPLE3
    b"(": lambda u: u.mark(),
    b"t": lambda u: u.push(tuple(u.pop_mark())),  # TUPLE
    b"a": lambda u: u.append(list(u.pop(1))),  # APPEND
    b"e": lambda u: u.append(u.pop_mark()),  # APPENDS
    b"s": lambda u: u.set_items(list(u.pop(2))),  # SETITEM
    b"u": lambda u: u.set_items(u.pop_mark()),  # SETITEMS
    b"q": lambda u: u.put(u.integer(1)),  # BINPUT
    b"r": lambda u: u.put(u.integer(4)),  # LONG_BINPUT
    b"\x94": lambda u: u.put(len(u.memo)),  # MEMOIZE
    b"h": lambda u: u.push(u.memo[u.integer(1)]),  # BINGET
    b"j": lambda u: u.push(u.memo[u.integer(4)]),  # LONG_BINGET
    b"c": lambda u: u.find_global(u.line(), u.line()),  # GLOBAL
    b"\x93": lambda u: u.find_global(*u.pop(2)),  # STACK_GLOBAL
    b"Q": lambda u: u.persistent(),  # BINPERSID
    b"R": lambda u: u.reduce(),  # REDUCE
    b"b": lambda u: u.build(),  # BUILD
}
