"""uvicorn's protocol of a connection, with bounds on what comes before a request has a body: it sets none."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 1 << 17  # httptools takes URLs of 64 KiB; as much again for headers


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose heads are bounded in bytes, trailers and the framing of chunks too, and in time.

    Args:
        head_timeout: Seconds for a head to arrive, from its first byte, or from the connection's begin.
    """

    def __init__(self, *args: Any, head_timeout: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timeout = head_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._besides = 0  # bytes of the request that are not of its body

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._besides += len(data)
        super().data_received(data)
        if self._besides <= MAX_HEAD_BYTES or self.transport.is_closing():
            return
        if self._is_answering:
            self.transport.close()
        else:
            self.send_400_response(f"The head of a request has at most {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._cancel_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # Twice, so that chunks of some bytes pay for their framing, and those of one do not.
        self._besides = max(0, self._besides - 2 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._besides = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self._head_timeout, self._end_of_wait)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_of_wait(self) -> None:
        if self._is_answering:  # an earlier request, which is not to be cut
            self._await_head()
        else:
            self._timer = None
            self.transport.close()
