"""Requests at work: a bounded number of them in threads, a bounded number waiting, each with a deadline.

The event loop admits a request, or refuses it at once. Each admitted one is a ``Job``: a function of the model that
runs in a thread of its own, so that jobs that run at the same time share the engine's steps. A job ends by its
result, by its deadline, or because its client has left.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from gitfast.errors import CancelledError, DeadlineError
from gitfast.serve.errors import ApiError, busy, shutting_down, timed_out, without_frames
from gitfast.serve.metrics import Metrics
from gitfast.serve.settings import Settings
from gitfast.types import CancelToken

T = TypeVar("T")

POLL_INTERVAL_S = 0.02

_END = object()


def tell(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> bool:
    """Have a loop call something, from a thread. False: it is closed, as after a second signal."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return False
    return True


class Job(Generic[T]):
    """One piece of work in a thread. Methods are for the event loop, except ``emit``.

    Attributes:
        cancel: The token that the work hands to the model, so that it ends within a step when the job ends.
        queue_seconds: Seconds that the job waited for its thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self.cancel = CancelToken(timeout=timeout)
        self.queue_seconds = 0.0
        self._loop = loop
        self._created = time.perf_counter()
        self._result: asyncio.Future[T] = loop.create_future()
        self._result.add_done_callback(self._ended)
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()
        self._timer = loop.call_later(timeout, self.fail, timed_out(timeout))
        self._future: Future[None] | None = None
        self._work: Callable[[Job[T]], T] | None = None  # holds the request's body

    def emit(self, piece: Any) -> bool:
        """Hand a part of the result to whoever reads ``pieces``; from the job's thread. False: stop, nobody does."""
        if self._result.done():
            return False
        return tell(self._loop, self._pieces.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[Any]:
        """Yield the work's parts as it emits them; then raise its error."""
        while (piece := await self._pieces.get()) is not _END:
            yield piece
        await self.result()

    async def result(self) -> T:
        """Wait for the work's result.

        Raises:
            ApiError: 504 at the deadline; or the work's error.
        """
        return await asyncio.shield(self._result)

    def fail(self, error: Exception) -> None:
        """End the job with ``error``, unless it has ended."""
        if not self._result.done():
            self._result.set_exception(error)

    def leave(self) -> None:
        """End the job because nobody waits for it any more."""
        self._result.cancel()

    def _ended(self, result: asyncio.Future[T]) -> None:
        self._timer.cancel()
        self.cancel.cancel()  # nothing, if the work is done
        if self._future is not None and self._future.cancel():  # False, if it runs
            self._work = None  # the pool keeps a cancelled job until a thread is free
        self._pieces.put_nowait(_END)
        if not result.cancelled():
            result.exception()  # seen: a client that has left may never ask for it

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        if self._result.done():
            return
        if error is None:
            self._result.set_result(value)  # type: ignore[arg-type]
        else:
            self._result.set_exception(error)


class Jobs:
    """The jobs of a server: admitted, run, and ended. All methods are for the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.draining = False
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(settings.max_running, "gitfast-serve")
        self._jobs: set[Job[Any]] = set()
        self._admitted = 0
        self._running = 0
        self._lock = threading.Lock()  # guards _running, which the threads count
        metrics.watch_jobs(running=lambda: self._running, waiting=lambda: self._admitted - self._running)

    def check(self) -> None:
        """Refuse where ``submit`` would: before a body is read.

        Raises:
            ApiError: 503; the server is full, or ends.
        """
        if self.draining:
            raise shutting_down()
        if self._admitted >= self.settings.max_running + self.settings.max_queue:
            raise busy("the server is busy: its queue is full; try again", "queue_full")

    def submit(self, work: Callable[[Job[T]], T]) -> Job[T]:
        """Run ``work(job)`` in a thread, now or once one is free.

        Raises:
            ApiError: as ``check``.
        """
        self.check()
        loop = asyncio.get_running_loop()
        job: Job[T] = Job(loop, self.settings.timeout)
        self._admitted += 1
        self._jobs.add(job)
        job._work = work
        job._future = self._pool.submit(self._run, job)
        job._future.add_done_callback(lambda _: tell(loop, self._release, job))
        return job

    async def drain(self, seconds: float) -> None:
        """Admit nothing more; give what was admitted ``seconds`` to end, then end it."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self._admitted and time.monotonic() < deadline:
            await asyncio.sleep(POLL_INTERVAL_S)
        for job in list(self._jobs):
            job.fail(shutting_down())

    async def close(self) -> None:
        """End all jobs and wait for their threads."""
        await self.drain(0)
        while self._admitted:
            await asyncio.sleep(POLL_INTERVAL_S)
        self._pool.shutdown()

    def _release(self, job: Job[Any]) -> None:
        self._admitted -= 1
        self._jobs.discard(job)

    def _run(self, job: Job[T]) -> None:
        job.queue_seconds = time.perf_counter() - job._created
        self._metrics.queue_seconds.observe(job.queue_seconds)
        with self._lock:
            self._running += 1
        work, job._work = job._work, None
        assert work is not None
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work(job)
        except (CancelledError, DeadlineError):  # the job has ended, or is about to: at its deadline
            error = timed_out(self.settings.timeout)
        except ApiError as refused:
            error = without_frames(refused)
        except BaseException as raised:
            error = raised
        finally:
            with self._lock:
                self._running -= 1
        tell(job._loop, job._finish, value, error)
