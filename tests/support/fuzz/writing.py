"""Inputs of a target written to the file that its reader opens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def read_file(
    path: Path, read: Callable[[Path], object], wrap: Callable[[bytes], bytes] = bytes
) -> Callable[[bytes], object]:
    """Write each input to one file, opened once, and read that."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def attempt(data: bytes) -> object:
        data = wrap(data)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
        return read(path)

    return attempt
