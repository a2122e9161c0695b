"""Requests to the service, without a network: the first line says the path and the kind of the body."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gitfast
from gitfast.serve import Settings, create_app

from support.fuzz.loop import Target
from support.fuzz.mutations import changed_json
from support.serving import SQUARES, chat_body

_BOUNDARY = b"--x\r\nContent-Disposition: form-data; name="
_REFUSED = (400, 404, 405, 408, 413, 415, 503)


class Refused(Exception):
    """An answer of 4xx."""


def requests(_: Path) -> Target:
    image = SQUARES.read_bytes()
    app = create_app(gitfast.load("git-tiny"), Settings(served_name="git-tiny", max_new_tokens=4, max_images=2))
    loop = asyncio.new_event_loop()

    def read(data: bytes) -> object:
        status = loop.run_until_complete(_answer(app, data))
        if status in _REFUSED:
            raise Refused(status)
        if status != 200:
            raise AssertionError(f"status {status}")
        return status

    form = b"".join(
        [
            _BOUNDARY + b'"image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + image + b"\r\n",
            _BOUNDARY + b'"question"\r\n\r\nwhat color?\r\n' + _BOUNDARY + b'"max_new_tokens"\r\n\r\n2\r\n--x--\r\n',
        ]
    )
    chat = chat_body(image, "what color?", max_tokens=2, n=1, temperature=0.5, top_p=0.9, seed=1, logprobs=True)
    streamed = chat_body(image, max_tokens=2, stream=True, stream_options={"include_usage": True})
    seeds = [
        b"/v1/chat/completions application/json\n" + json.dumps(chat).encode(),
        b"/v1/chat/completions application/json\n" + json.dumps(streamed).encode(),
        b"/v1/answer multipart/form-data;boundary=x\n" + form,
        b"/v1/caption?max_new_tokens=2&prompt=two image/png\n" + image,
        b"/v1/classify?label=one&label=two&max_new_tokens=2 image/png\n" + image,
        b"/v1/score?text=one&normalize=mean application/octet-stream\n" + image,
    ]
    return Target(read, seeds, Refused, [_changed])


def _changed(data: bytes, rng: random.Random) -> bytes:
    """A JSON body, a part of a form, or the first line changed."""
    head, _, body = data.partition(b"\n")
    if b"json" in head and rng.randrange(4):
        return head + b"\n" + changed_json(body, rng)
    words = (
        b"multipart/form-data;boundary=x",
        b"application/json",
        b"image/png",
        b"?x=1",
        b"&question=a",
        b"&top_k=-1",
    )
    words += (b"%00", b"&num_beams=9999999999", b"&temperature=nan", b";boundary=", b"\xff", b"=", b"&label=a")
    if rng.randrange(2) and b"multipart" in head:
        lines = body.split(b"\r\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice((*lines, *words)))
        return head + b"\n" + b"\r\n".join(lines)
    place = rng.randrange(len(head) + 1)
    return head[:place] + rng.choice(words) + head[place:] + b"\n" + body


async def _answer(app: Any, data: bytes) -> int:
    """The status of the answer to one request."""
    head, _, body = data.partition(b"\n")
    target, _, kind = head.partition(b" ")
    path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": unquote(path.decode("latin-1"), "latin-1"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"here"), (b"content-type", kind), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await asyncio.wait_for(app(scope, receive, send), 60)
    return statuses[0]


TARGETS = {"serve": requests}
