"""A bounded number of requests runs, a bounded number waits; the rest is refused, and nothing is left behind."""

from __future__ import annotations

import contextlib
import io
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest

from support.serving import IMAGES, SQUARES, assert_error, chat_body, running
from support.tiny_checkpoint import random_image

RUNNING, QUEUE = 2, 3
HEADERS = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return tmp_path_factory.mktemp("gate") / "closed"


@pytest.fixture(scope="module")
def server(gate):
    limits = ["--max-running", RUNNING, "--max-queue", QUEUE, "--timeout", 30]
    with running(limits, gate=gate) as found:
        yield found


@pytest.fixture
def closed(gate, server):
    """While the test runs, requests that reach the engine stay there."""
    gate.touch()
    yield
    gate.unlink(missing_ok=True)
    server.wait_for("gitfast_running_requests", 0)


def caption(server, image=SQUARES) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/caption", content=image.read_bytes(), headers=HEADERS)


@contextlib.contextmanager
def full(server):
    """As many requests as are admitted, held; gives their futures."""
    with ThreadPoolExecutor(RUNNING + QUEUE) as pool:
        futures = [pool.submit(caption, server) for _ in range(RUNNING + QUEUE)]
        server.wait_for("gitfast_queue_depth", QUEUE)
        server.wait_for("gitfast_running_requests", RUNNING)
        yield futures


def test_a_full_queue_refuses_at_once(server, gate, closed):
    with full(server) as futures:
        before = server.metric("gitfast_rejected_total")
        fastest = 10.0
        for _ in range(5):
            begin = time.perf_counter()
            response = caption(server)
            fastest = min(fastest, response.elapsed.total_seconds(), time.perf_counter() - begin)
            assert_error(response, 503, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
        with server.client() as client:
            assert_error(client.post("/v1/chat/completions", json=chat_body(stream=True)), 503, "queue_full")
            assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert server.metric("gitfast_rejected_total") == before + 6
        assert fastest < 0.05
        gate.unlink()
        assert [f.result().json()["results"][0]["text"] for f in futures] == ["five red squares"] * 5


def test_a_full_queue_refuses_before_the_body_is_read(server, gate, closed):
    with full(server) as futures:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            connection.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 503")
        gate.unlink()
        assert all(f.result().status_code == 200 for f in futures)


def test_clients_that_leave(server, closed):
    """A running or waiting request frees its place as soon as its client leaves."""
    before = server.metric("gitfast_cancelled_total")
    clients = []
    for _ in range(RUNNING + QUEUE):
        connection = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
        body = SQUARES.read_bytes()
        top = f"POST /v1/caption HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(top.encode() + body)
        clients.append(connection)
    server.wait_for("gitfast_queue_depth", QUEUE)
    for connection in clients:
        connection.close()
    server.wait_for("gitfast_queue_depth", 0)
    server.wait_for("gitfast_running_requests", 0)  # while the engine would still keep them
    server.wait_for("gitfast_cancelled_total", before + RUNNING + QUEUE)


def test_one_picture_of_many_clients_is_encoded_once(server):
    file = io.BytesIO()
    random_image(7).save(file, "PNG")
    image = file.getvalue()
    before = server.metric("gitfast_engine_encoded_images_total")

    def ask(_: int) -> int:
        with server.client() as client:
            return client.post("/v1/caption", content=image, headers=HEADERS).status_code

    with ThreadPoolExecutor(RUNNING + QUEUE) as pool:
        assert set(pool.map(ask, range(10))) == {200}
    assert server.metric("gitfast_engine_encoded_images_total") == before + 1


def test_the_deadline(gate, tmp_path):
    gate = tmp_path / "closed"
    with running(["--timeout", 0.5, "--max-running", 1], gate=gate) as server:
        gate.touch()
        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(caption, server) for _ in range(3)]:  # one that runs, and two that wait
                assert_error(future.result(), 504, "deadline_exceeded")
        with server.client() as client:
            assert_error(client.post("/v1/chat/completions", json=chat_body(stream=True)), 504, "deadline_exceeded")
        gate.unlink()
        server.wait_for("gitfast_running_requests", 0)
        assert caption(server).status_code == 200


def test_64_clients(tmp_path, model):
    """Under everyday limits all clients are served, and each is told of its own picture."""
    expected = {image: result.text for image, result in zip(IMAGES, model.caption(IMAGES), strict=True)}

    def ask(number: int) -> tuple[int, str, str]:
        image = IMAGES[number % len(IMAGES)]
        with server.client() as client:
            if number % 2:
                response = client.post("/v1/chat/completions", json=chat_body(image))
                return response.status_code, response.json()["choices"][0]["message"]["content"], expected[image]
            response = client.post("/v1/caption", content=image.read_bytes(), headers=HEADERS)
            return response.status_code, response.json()["results"][0]["text"], expected[image]

    with running() as server, ThreadPoolExecutor(64) as pool:
        for status, found, text in pool.map(ask, range(128)):
            assert (status, found) == (200, text)
        assert server.metric("gitfast_rejected_total") == 0


def test_disconnects_at_random(server):
    """Streams and plain requests cut at any moment leave nothing behind, and the next is served."""
    rng = random.Random(0)
    moments = [rng.random() * 0.05 for _ in range(40)]

    def cut(moment: float) -> None:
        with server.client(timeout=10) as client:
            closer = threading.Timer(moment, client.close)
            closer.start()
            with (
                contextlib.suppress(Exception),
                client.stream("POST", "/v1/chat/completions", json=chat_body(stream=moment > 0.025)) as response,
            ):
                for _ in response.iter_bytes():
                    pass
            closer.join()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(cut, moments))
    server.wait_for("gitfast_running_requests", 0)
    server.wait_for("gitfast_queue_depth", 0)
    assert caption(server).json()["results"][0]["text"] == "five red squares"
    assert server.logs("failed") == []
