"""Do what operating systems do differently: what POSIX alone has is used where it is there, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import IO, Any

# For os.open: what is there is continued, its bytes are what is written, and no child inherits it.
OPEN_TO_CONTINUE = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def after_fork_in_child(function: Callable[[], object]) -> None:
    """Have ``function`` called in every forked child; nothing forks where this is not to be had."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def usable_cpus() -> int:
    """Count the CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[Any]) -> bool:
        """Lock a file for this process until it is closed; return False where another process has."""
        position = file.tell()
        try:
            file.seek(1 << 40)  # one byte far behind all that is written: others may read the file
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(position)
        return True

    def rename_open(file: IO[Any], path: str, target: str) -> None:
        """Give ``file``, open at ``path``, the name ``target``. It is closed: no open file is renamed here."""
        file.close()
        os.replace(path, target)

else:
    import fcntl

    def lock(file: IO[Any]) -> bool:
        """Lock a file for this process until it is closed; return False where another process has.

        A file system without locks grants all.
        """
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def rename_open(file: IO[Any], path: str, target: str) -> None:
        """Give ``file``, open at ``path``, the name ``target``."""
        os.replace(path, target)
