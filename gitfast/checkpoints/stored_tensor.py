"""Tensors where they lie in files: mapped into memory, checked against the file's size, converted when asked for."""

from __future__ import annotations

import math
import mmap
import os
import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gitfast.checkpoints.files import open_regular
from gitfast.errors import CheckpointError

# The numpy dtype that reads the elements of each dtype. numpy has no bfloat16: its bits are read as uint16 and widened.
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")
MAX_DIMS = 8
MAX_TENSORS = 4096  # in a file; the largest published model has 497
_MAX_NAME = 512


def name_problem(name: Any) -> str | None:
    """Return what is wrong with the name of a tensor, or None."""
    if isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable():
        return None
    return f"tensor name {reprlib.repr(name)} is no text, empty, too long or not printable"


def itemsize(dtype: str) -> int:
    """Return the bytes of one element."""
    return _NUMPY_DTYPES[dtype].itemsize


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class MappedFile:
    """A file mapped read-only. The mapping lives as long as an array that views it.

    Reading pages that were cut off a mapped file kills a process, so every access first compares the file's size with
    what it was. Writers that replace a file by renaming, as ours and the safetensors library do, never cut one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
                raise CheckpointError(f"{path}: the file is empty")
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        self.size = len(self._map)

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        """Return a read-only uint8 view of the bytes from ``offset``; callers check that they lie in the file."""
        if self._map.size() < self.size:
            raise CheckpointError(f"{self.path}: became shorter while it was being read")
        return np.frombuffer(self._map, np.uint8, nbytes, offset)


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor inside a mapped file. Whoever makes one has checked that all its elements lie inside the file."""

    file: MappedFile
    offset: int  # the first element's, in bytes
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, none negative

    def rows(self, start: int, stop: int) -> StoredTensor:
        """Return the rows ``start`` to ``stop`` along the first dimension."""
        offset = self.offset + start * self.strides[0] * itemsize(self.dtype)
        return replace(self, offset=offset, shape=(stop - start, *self.shape[1:]))

    def load(self) -> np.ndarray:
        """Load the values, C-contiguous: float16 and float32 as stored, bfloat16 and float64 as float32.

        Values stored contiguous, aligned and in a dtype that is kept are a read-only view of the file: no copy.
        """
        dtype = _NUMPY_DTYPES[self.dtype]
        elements = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        raw = self.file.read(self.offset, elements * dtype.itemsize)
        if self.offset % dtype.itemsize:
            raw = raw.copy()
        steps = [stride * dtype.itemsize for stride in self.strides]
        x = np.lib.stride_tricks.as_strided(raw.view(dtype), self.shape, steps, writeable=False)
        if self.dtype == "bfloat16":
            return (x.astype(np.uint32, order="C") << 16).view(np.float32)
        if self.dtype == "float64":
            return x.astype(np.float32, order="C")
        return x if x.flags.c_contiguous else x.copy(order="C")
