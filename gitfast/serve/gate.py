"""Middleware of every request: its id, the key, the body's limits, errors, metrics, a log entry."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gitfast.serve import tracing
from gitfast.serve.body import BodyReader, ClientLeft
from gitfast.serve.errors import ApiError, internal_error, of_status, without_frames
from gitfast.serve.jobs import Job, Jobs
from gitfast.serve.logs import log
from gitfast.serve.metrics import Metrics
from gitfast.serve.settings import Settings

T = TypeVar("T")

# Paths without secrets, or needed by health checks.
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")
LEFT = 499  # the status, in logs and metrics, of a request whose client left

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Gate:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        bodies: BodyReader,
        jobs: Jobs,
        metrics: Metrics,
        paths: Collection[str],
    ) -> None:
        self._app = app
        self._settings, self._bodies, self._jobs, self._metrics = settings, bodies, jobs, metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = Headers(scope=scope)
        asked_id = headers.get("x-request-id", "")
        request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else secrets.token_hex(16)
        facts: dict[str, Any] = {}  # for the log
        scope.setdefault("state", {})["facts"] = facts
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(raw=message["headers"])
                answer["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await send(message)
            except TimeoutError:  # it does not read: its body is not to be held for ever
                raise ClientLeft from None
            except RuntimeError as error:
                # uvloop's; uvicorn tells only the last of requests that came at once that the client has left.
                if "handler is closed" not in str(error):
                    raise
                raise ClientLeft from None

        path = scope["path"] if scope["path"] in self._paths else "other"
        with tracing.server_span(f"{scope['method']} {path}", headers) as span:
            try:
                error = await self._pass(scope, receive, send_with_headers, headers)
                if error is not None:
                    facts["code"] = error.code
                    if error.status == 503:
                        self._metrics.rejected.labels(error.code).inc()
                    if not status:
                        await error.response()(scope, receive, send_with_headers)
            except (ClientLeft, asyncio.CancelledError) as left:
                status = LEFT
                self._metrics.cancelled.inc()
                if isinstance(left, asyncio.CancelledError):
                    raise
            finally:
                seconds = time.perf_counter() - begin
                self._metrics.requests.labels(path, str(status)).inc()
                self._metrics.request_seconds.labels(path).observe(seconds)
                if span is not None:
                    span.set_attribute("http.response.status_code", status)
                    span.set_attribute("http.route", path)
                log(
                    "request",
                    level=logging.DEBUG if path in ("/healthz", "/readyz", "/metrics") else logging.INFO,
                    request_id=request_id,
                    method=scope["method"],
                    route=path,
                    status=status,
                    seconds=round(seconds, 6),
                    **facts,
                )

    async def _pass(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> ApiError | None:
        """Run the request; return the error to answer with, if there is one."""
        held = 0
        try:
            self._authorize(scope["path"], headers)
            if scope["method"] == "POST" and scope["path"] in self._paths:
                self._jobs.check()  # refused before its body is read
                body = await self._bodies.read(scope, receive)
                held = len(body)
                receive = _replay(body, receive)
            await self._app(scope, receive, send)
        except ApiError as error:
            return without_frames(error)
        except (ClientLeft, asyncio.CancelledError):
            raise
        except Exception as error:
            log("failed", level=logging.ERROR, error=error, route=scope["path"])
            return internal_error()
        finally:
            self._bodies.release(held)
        return None

    def _authorize(self, path: str, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip(" ").encode("latin-1"), key.encode()):
            message = "this server needs a key: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Replay the body that was read, then the messages after it: the news that the client has left."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(work: Awaitable[T], receive: Receive) -> T:
    """Return the result of ``work``, unless the client leaves first.

    Raises:
        ClientLeft: it has.
    """

    async def run() -> T:
        return await work

    result, left = asyncio.ensure_future(run()), asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait({result, left}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientLeft
        return result.result()
    finally:
        await _end(result, left)


async def result_of(job: Job[T], receive: Receive) -> T:
    """Return the job's result, unless the client leaves first, which ends the job.

    Raises:
        ClientLeft: it has.
        ApiError: as ``Job.result``.
    """
    try:
        return await unless_left(job.result(), receive)
    finally:
        job.leave()


class EventStream(StreamingResponse):
    """Server-sent events of a job, which ends with the connection: a client that leaves ends the job."""

    def __init__(self, job: Job[Any], events: AsyncIterator[str], *, timeout: float) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")
        self._job, self._timeout = job, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer = asyncio.ensure_future(self._write(send))
        left = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait({writer, left}, return_when=asyncio.FIRST_COMPLETED, timeout=self._timeout)
            if not writer.done():
                raise ClientLeft
            writer.result()
        finally:
            self._job.leave()
            await _end(writer, left)

    async def _write(self, send: Send) -> None:
        async for event in self.body_iterator:
            await send({"type": "http.response.body", "body": str(event).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def error_response(status: int, detail: str | None, headers: Any = None) -> Response:
    """Answer the web framework's own refusals."""
    return of_status(status, detail, headers).response()
