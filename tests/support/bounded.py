"""A call in a process of its own, which the system ends when it takes more time or memory than it may."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CPU_SECONDS = 20  # of what takes a second: a bound on growth, not on speed
MEMORY_BYTES = 400 << 20  # beyond what the process had


def outcome(function: Callable[..., Any], *arguments: Any, memory_bytes: int = MEMORY_BYTES) -> Any:
    """The result of a call, or the exception that ended it.

    Raises:
        AssertionError: the call was ended for its time, or ended its process.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, memory_bytes, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"ended by exit code {process.exitcode}, after {CPU_SECONDS} s at most") from None
    finally:
        process.kill()
        process.join()


def _run(sender: Connection, memory_bytes: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    try:
        result = function(*arguments)
    except BaseException as error:
        result = error
    sender.send(result)
