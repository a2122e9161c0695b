"""State dicts of ``torch.save``, read without torch and without running anything, in either of its formats.

Since torch 1.6 a file is an uncompressed zip archive: ``data.pkl`` describes nested dicts of tensors, ``data/<key>``
hold the bytes of their storages. Before, and with ``_use_new_zipfile_serialization=False``, it is a row of pickles
(a magic number, a version, facts of the machine, the dicts, the keys of the storages) and the storages behind them.
"""

from __future__ import annotations

import io
import math
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gitfast.checkpoints.files import FormatError
from gitfast.checkpoints.state_dict import unwrap
from gitfast.checkpoints.stored_tensor import MAX_TENSORS, MappedFile, StoredTensor, itemsize, name_problem
from gitfast.checkpoints.unpickler import MAX_PICKLE_BYTES, StorageReference, TensorReference, Unpickler
from gitfast.errors import CheckpointError

_MAX_DIRECTORY_BYTES = 4 << 20
_MAX_ROOT = 256  # characters of the folder that all records are in
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_HEADER_STEPS = 1_000
# Tensors may share a storage, as tied embeddings do; the output and the embeddings tied are not twice the file.
_MAX_SHARING = 2


def read_pickle(path: str | Path) -> dict[str, StoredTensor]:
    """Read all tensors of a state dict by name, also where a training script wrapped it (``unwrap``).

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds anything but a state dict, or the tensors take
            more memory than twice the file because they share their storages; the message names the file.
    """
    file = MappedFile(path)
    try:
        start = file.read(0, min(file.size, 2)).tobytes()
        if start == b"PK":
            state, starts = _read_zip(file)
        elif start[:1] == b"\x80":
            state, starts = _read_legacy(file)
        else:
            raise FormatError("not a zip archive and no pickle, so not saved by torch.save (or truncated at its start)")
        tensors = _tensors(unwrap(state), starts, file)
        _check_sharing(tensors, file.size)
    except FormatError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return tensors


def _tensors(state: Any, starts: Mapping[str, int], file: MappedFile) -> dict[str, StoredTensor]:
    if not isinstance(state, dict) or not state:
        raise FormatError(f"expected a dict of tensors, got {_shown(state)}")
    if len(state) > MAX_TENSORS:
        raise FormatError(f"holds {len(state)} tensors; at most {MAX_TENSORS}")
    tensors = {}
    for name, value in state.items():
        if problem := name_problem(name):
            raise FormatError(problem)
        if not isinstance(value, TensorReference):
            raise FormatError(f"{name}: expected a tensor, got {_shown(value)}")
        dtype = value.storage.dtype
        offset = starts[value.storage.key] + value.offset * itemsize(dtype)
        tensors[name] = StoredTensor(file=file, offset=offset, dtype=dtype, shape=value.shape, strides=value.strides)
    return tensors


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__}"
    return reprlib.repr(value) if isinstance(value, (str, int, float)) else type(value).__name__.strip("_")


def _check_sharing(tensors: Mapping[str, StoredTensor], size: int) -> None:
    """Check, before any allocation, that the file bounds the memory of the tensors."""
    needed = sum(math.prod(tensor.shape) * itemsize(tensor.dtype) for tensor in tensors.values())
    if needed > _MAX_SHARING * size:
        raise FormatError(f"its tensors share storages: {needed} bytes in a file of {size}")


def _read_zip(file: MappedFile) -> tuple[Any, dict[str, int]]:
    """Return the pickled value, and the offset in the file of each storage."""
    archive = _Archive(file)
    unpickler = Unpickler(archive.pickle())
    state = unpickler.load()
    return state, {key: archive.storage(storage) for key, storage in unpickler.storages.items()}


class _CappedFile(io.FileIO):
    """A file that caps reads: zipfile reads a whole directory at once, however long the file says it is."""

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
        try:
            with _CappedFile(file.path) as stream, zipfile.ZipFile(stream) as archive:
                records = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, OSError, struct.error) as error:
            raise FormatError(f"damaged or truncated zip archive: {error}") from None
        self._records = {record.filename: record for record in records}
        if len(self._records) < len(records):
            raise FormatError("damaged zip archive: holds two records of one name")
        roots = [name.removesuffix("data.pkl") for name in self._records if name.endswith("/data.pkl")]
        if len(roots) != 1 or len(roots[0]) > _MAX_ROOT:
            raise FormatError(f"expected one record data.pkl as torch.save writes, found {len(roots)}")
        self._root = roots[0]
        if f"{self._root}byteorder" in self._records and self._bytes("byteorder") != b"little":
            raise FormatError("was saved on a big-endian machine; only little-endian files are read")

    def pickle(self) -> bytes:
        return self._bytes("data.pkl")

    def storage(self, storage: StorageReference) -> int:
        """Return the offset in the file of a storage."""
        offset, size = self._locate(f"data/{storage.key}")
        nbytes = storage.numel * itemsize(storage.dtype)
        if size != nbytes:
            raise FormatError(f"storage {reprlib.repr(storage.key)}: expected {nbytes} bytes, the archive holds {size}")
        return offset

    def _bytes(self, name: str) -> bytes:
        offset, size = self._locate(name)
        if size > MAX_PICKLE_BYTES:
            raise FormatError(f"{name}: {size} bytes; at most {MAX_PICKLE_BYTES}")
        data = self.file.read(offset, size).tobytes()
        checksum = self._records[self._root + name].CRC
        if checksum and zlib.crc32(data) != checksum:  # 0: torch can be told to write none
            raise FormatError(f"{name}: damaged, its checksum is wrong")
        return data

    def _locate(self, name: str) -> tuple[int, int]:
        """Return offset and size of an uncompressed record, after checking that it lies inside the file."""
        record = self._records.get(self._root + name)
        if record is None:
            raise FormatError(f"the archive holds no record {reprlib.repr(name)}")
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise FormatError(f"record {reprlib.repr(name)} is compressed or encrypted; torch.save does neither")
        header, size = record.header_offset, record.file_size
        if record.compress_size == size and 0 <= header <= self.file.size - _LOCAL_HEADER.size:
            local = self.file.read(header, _LOCAL_HEADER.size).tobytes()
            magic, name_length, extra_length = _LOCAL_HEADER.unpack(local)
            offset = header + _LOCAL_HEADER.size + name_length + extra_length
            if magic == b"PK\x03\x04" and offset + size <= self.file.size:
                return offset, size
        raise FormatError(f"damaged or truncated zip archive: record {reprlib.repr(name)} does not lie inside it")


def _read_legacy(file: MappedFile) -> tuple[Any, dict[str, int]]:
    """Do ``_read_zip`` for the older format."""
    position = 0

    def unpickle(max_steps: int | None = None) -> tuple[Any, Unpickler]:
        nonlocal position
        data = file.read(position, min(file.size - position, MAX_PICKLE_BYTES)).tobytes()
        unpickler = Unpickler(data) if max_steps is None else Unpickler(data, max_steps)
        value = unpickler.load()
        position += unpickler.position
        return value, unpickler

    magic, _ = unpickle(_MAX_HEADER_STEPS)
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise FormatError("a pickle, but not one of torch.save: it does not begin with its magic number")
    version, _ = unpickle(_MAX_HEADER_STEPS)
    if type(version) is not int or version != _LEGACY_VERSION:
        raise FormatError(f"expected version {_LEGACY_VERSION} of torch's older format, got {_shown(version)}")
    machine, _ = unpickle(_MAX_HEADER_STEPS)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise FormatError("was saved on a big-endian machine; only little-endian files are read")
    state, unpickler = unpickle()
    keys, _ = unpickle()
    storages = unpickler.storages
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise FormatError("damaged: its list of storages is not that of its tensors")
    starts = {}
    for key in keys:
        storage = storages[key]
        nbytes = storage.numel * itemsize(storage.dtype)
        if position + 8 + nbytes > file.size:
            raise FormatError(f"truncated: storage {reprlib.repr(key)} ends behind the file")
        if int.from_bytes(file.read(position, 8).tobytes(), "little") != storage.numel:
            raise FormatError(f"damaged: storage {reprlib.repr(key)} has another size than its tensors say")
        starts[key] = position + 8
        position += 8 + nbytes
    return state, starts
