"""Memory read bandwidth of this machine: a loop over as many bytes as a decode step must read."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path


class Stream:
    """``bytes`` of memory in huge pages, read by ``threads`` threads. Needs a compiler."""

    def __init__(self, num_bytes: int, threads: int) -> None:
        self.num_bytes = num_bytes
        self._library = _compiled()
        self._stream = ctypes.c_void_p(self._library.stream_open(ctypes.c_int64(num_bytes), threads))

    def read(self, times: int) -> None:
        """Read all of it, ``times`` in a row."""
        self._library.stream_read(self._stream, times)

    def close(self) -> None:
        self._library.stream_close(self._stream)


def _compiled() -> ctypes.CDLL:
    source = Path(__file__).with_name("stream.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "stream.so"
        subprocess.run(
            ["c++", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", source, "-o", library], check=True
        )
        loaded = ctypes.CDLL(str(library))
    loaded.stream_open.restype = ctypes.c_void_p
    return loaded
