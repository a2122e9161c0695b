"""Calls of ``huggingface_hub`` with an end: its own timeouts begin again with every byte that a Hub drips."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ANSWER_TIMEOUTS = 3  # an answer of a few kilobytes is waited for as long as so many of HF_HUB_ETAG_TIMEOUT
STALL_TIMEOUTS = 60  # a download ends when in so many of HF_HUB_DOWNLOAD_TIMEOUT, 600 s, hardly anything came
LEAST_BYTES = 1 << 20  # in that time; files are received in pieces of 10 MiB, which a line of 17 kB/s has received then
_POLL_SECONDS = 0.5


class StalledError(Exception):
    """The Hub answers too slowly to be waited for."""


def ask(call: Callable[[], T]) -> T:
    """Return what ``call`` returns, a question to the Hub.

    Raises:
        StalledError: there is no whole answer in time.
    """
    from huggingface_hub import constants

    return _within(call, ANSWER_TIMEOUTS * constants.HF_HUB_ETAG_TIMEOUT, lambda: 0)


def fetch(repository: str, cache_dir: str | Path | None, **options: Any) -> str:
    """Do ``snapshot_download``, and show its progress as it does.

    Raises:
        StalledError: there is hardly any progress.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import tqdm

    folder = Path(cache_dir or constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    counted = 0

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> bool | None:
            nonlocal counted
            counted += int(n or 0)
            return super().update(n)  # type: ignore[no-any-return]

    # Bars count bytes in newer versions only; files grow in all, but by Xet not before many megabytes came.
    try:
        return _within(
            lambda: huggingface_hub.snapshot_download(repository, cache_dir=cache_dir, tqdm_class=Bar, **options),
            STALL_TIMEOUTS * constants.HF_HUB_DOWNLOAD_TIMEOUT,
            lambda: counted + _bytes_in(folder),
        )
    except (StalledError, KeyboardInterrupt):
        # Its threads read on, and the interpreter would wait for them when it ends.
        getattr(huggingface_hub, "close_session", lambda: None)()
        raise


def _within(call: Callable[[], T], seconds: float, progress: Callable[[], int]) -> T:
    """Run ``call`` in a thread, until ``progress`` grows by less than ``LEAST_BYTES`` in ``seconds``."""
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:  # raised again by who waits
            future.set_exception(error)

    threading.Thread(target=run, name="gitfast-hub", daemon=True).start()
    seen, begin = progress(), time.monotonic()
    while not wait([future], timeout=_POLL_SECONDS).done:
        now = progress()
        if now >= seen + LEAST_BYTES:
            seen, begin = now, time.monotonic()
        elif time.monotonic() - begin > seconds:
            raise StalledError(f"less than {LEAST_BYTES >> 20} MiB came in {seconds:g} s")
    return future.result()


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # renamed meanwhile
                continue
    return total
