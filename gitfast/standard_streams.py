"""Standard streams that take nothing: full disks, readers that left."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


def flush_or_discard(stream: TextIO) -> None:
    """Flush a stream, or discard its buffer, so that no write is tried again when the interpreter ends."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
