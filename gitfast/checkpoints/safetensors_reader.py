"""The safetensors format: the header of a file, checked to the last number, and its tensors without copying them.

A file is 8 bytes of header length, a JSON header that gives each tensor's dtype, shape and byte range, and the bytes
of all tensors without gaps. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

from gitfast.checkpoints.files import FormatError, json_number
from gitfast.checkpoints.stored_tensor import (
    MAX_DIMS,
    MAX_TENSORS,
    MappedFile,
    StoredTensor,
    contiguous_strides,
    itemsize,
    name_problem,
)
from gitfast.errors import CheckpointError

MAX_HEADER_BYTES = 8 << 20
_MAX_CONTAINERS = (
    16 * MAX_TENSORS
)  # in the header's JSON, three a tensor: "[[],[],[],..." is small, its objects are not
_MAX_SIZE = 1 << 63  # no dimension and no offset is as large
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """Return all tensors of a file by name. Only the header is read.

    Raises:
        CheckpointError: the file cannot be read, or its header is not that of a safetensors file of this size; the
            message names the file and, where there is one, the tensor.
    """
    file = MappedFile(path)
    try:
        header, start = _read_header(file)
        tensors = {name: _tensor(file, start, name, entry) for name, entry in header.items()}
        _check_layout(tensors, start, file.size)
    except FormatError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return tensors


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """Read the header without its metadata, and the offset of the tensors' bytes."""
    if file.size < 8:
        raise FormatError(f"not a safetensors file: {file.size} bytes, at least 8 are needed")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"not a safetensors file, or a header of {length} bytes; at most {MAX_HEADER_BYTES}")
    if 8 + length > file.size:
        raise FormatError(f"truncated: its header is {length} bytes, the whole file {file.size}")
    data = file.read(8, length).tobytes()
    if data.count(b"{") + data.count(b"[") > _MAX_CONTAINERS:
        raise FormatError(f"its header holds more than {_MAX_CONTAINERS} objects and lists")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_int=json_number)
    except RecursionError:
        raise FormatError("its header is JSON that is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"its header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise FormatError(f"its header is not a JSON object but {type(header).__name__}")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise FormatError(f"its header names {len(header)} tensors; at most {MAX_TENSORS}")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise FormatError("its header has a name twice")
    return values


def _tensor(file: MappedFile, start: int, name: str, entry: Any) -> StoredTensor:
    if problem := name_problem(name):
        raise FormatError(problem)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{name}: expected dtype, shape and data_offsets, got {reprlib.repr(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatError(f"{name}: dtype {reprlib.repr(dtype)} is not one of {', '.join(_DTYPES)}")
    if not _is_sizes(shape, least=1) or len(shape) > MAX_DIMS:
        raise FormatError(f"{name}: shape {reprlib.repr(shape)} is not at most {MAX_DIMS} positive integers")
    if not _is_sizes(offsets, least=0) or len(offsets) != 2:
        raise FormatError(f"{name}: data_offsets {reprlib.repr(offsets)} are not two integers")
    begin, end = offsets
    needed = math.prod(shape) * itemsize(_DTYPES[dtype])  # Python integers: no overflow
    if end - begin != needed:
        raise FormatError(f"{name}: {dtype} of shape {shape} needs {needed} bytes, data_offsets give {end - begin}")
    if start + end > file.size:
        raise FormatError(f"truncated: {name} ends at byte {start + end}, the file at {file.size}")
    sizes = tuple(shape)
    return StoredTensor(
        file=file, offset=start + begin, dtype=_DTYPES[dtype], shape=sizes, strides=contiguous_strides(sizes)
    )


def _is_sizes(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(n) is int and least <= n < _MAX_SIZE for n in values)


def _check_layout(tensors: dict[str, StoredTensor], start: int, end: int) -> None:
    """Check that the byte ranges follow each other without gap or overlap, and fill the file."""
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset != position:
            problem = "overlaps the tensor before it" if tensor.offset < position else "leaves a gap before it"
            raise FormatError(f"{name}: its byte range {problem}")
        position += math.prod(tensor.shape) * itemsize(tensor.dtype)
    if position != end:
        raise FormatError(f"{end - position} bytes follow the last tensor")
