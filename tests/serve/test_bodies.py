"""Bodies that are cut, slow, huge or wrong: each has its answer, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from support.serving import SQUARES, assert_error, chat_body, running

LIMITS = ["--max-body-mb", 1, "--body-timeout", 1]


@pytest.fixture(scope="module")
def server():
    with running(LIMITS) as found:
        yield found


def connect(server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def head(path: str, length: int, kind: str = "image/png", extra: str = "") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{extra}\r\n"
    return lines.encode()


def read_reply(connection: socket.socket) -> httpx.Response:
    """The status, headers and body of a reply that ends its connection."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    return httpx.Response(int(status.split()[1]), headers=[line.split(": ", 1) for line in lines], content=body)


def assert_alive(client) -> None:
    response = client.post("/v1/caption", content=SQUARES.read_bytes(), headers={"Content-Type": "image/png"})
    assert response.json()["results"][0]["text"] == "five red squares"


@pytest.mark.parametrize("sent", [0, 1, 100])
def test_cut_bodies(server, client, sent):
    before = server.metric("gitfast_cancelled_total")
    with connect(server) as connection:
        connection.sendall(head("/v1/caption", 1000) + SQUARES.read_bytes()[:sent])
    server.wait_for("gitfast_cancelled_total", before + 1)
    assert server.logs("failed") == []
    assert_alive(client)


def test_slow_bodies(server):
    begin = time.monotonic()
    with connect(server) as connection:
        connection.sendall(head("/v1/caption", 1000) + b"some")
        assert_error(read_reply(connection), 408, "body_timeout")
    assert time.monotonic() - begin >= 1


def test_bodies_that_trickle(server):
    """Every byte is in time, the whole is not."""
    with connect(server) as connection:
        connection.sendall(head("/v1/caption", 1000))
        connection.settimeout(0.1)
        answered = b""
        for _ in range(300):
            try:
                connection.sendall(b"x")
                answered = connection.recv(65536)
                break
            except TimeoutError:
                continue
            except OSError:  # the server closed while more was sent
                break
        assert answered.startswith(b"HTTP/1.1 408") or answered == b""
    server.wait_for("gitfast_queue_depth", 0)


def test_huge_bodies_are_refused_by_what_they_declare(server):
    with connect(server) as connection:
        connection.sendall(head("/v1/caption", 10**12))
        assert_error(read_reply(connection), 413, "body_too_large")


def test_huge_bodies_that_declare_nothing(server, client):
    def chunks():
        for _ in range(40):
            yield b"x" * 50_000

    try:
        response = client.post("/v1/caption", content=chunks(), headers={"Content-Type": "image/png"})
        assert_error(response, 413, "body_too_large")
    except httpx.WriteError:  # it closed before all was sent
        pass
    assert_alive(client)


def test_a_body_of_exactly_the_limit(client):
    response = client.post("/v1/caption", content=b"x" * 1_000_000, headers={"Content-Type": "image/png"})
    assert_error(response, 400, "invalid_image")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\r\nHost: here\r\nA: " + b"a" * 1_000_000,
        b"GET /healthz HTTP/1.1\r\nHost: here\r\n" + b"a: b\r\n" * 100_000,
        b"GET /" + b"a" * 1_000_000,
        head("/v1/caption", 1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
        + b"1\r\nx\r\n0\r\n"
        + b"a: b\r\n" * 100_000,
        head("/v1/caption", 1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 100_000,
    ],
    ids=["header", "headers", "url", "trailers", "chunks"],
)
def test_heads_without_end(server, client, sent):
    with connect(server) as connection:
        try:
            connection.sendall(sent)
            answer = connection.recv(65536)
        except ConnectionError:  # it closed before all was sent
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert_alive(client)


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\nGET /hea"])
def test_slow_heads(server, sent):
    begin = time.monotonic()
    with connect(server) as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            pass
    assert time.monotonic() - begin >= 1


def test_a_long_query(server, client):
    prompt = "a" * 50_000
    response = client.post(
        "/v1/caption", params={"prompt": prompt}, content=b"x", headers={"Content-Type": "image/png"}
    )
    assert_error(response, 400)
    assert "x-request-id" in response.headers


@pytest.mark.parametrize(
    "arguments", [["--limit", "max_pixels=20K"], ["--limit", "max_pixels=20K", "--max-megapixels", 200]]
)
def test_limits_of_one_image(arguments):
    with running(arguments) as server, server.client() as client:
        response = client.post("/v1/caption", content=SQUARES.read_bytes(), headers={"Content-Type": "image/png"})
        assert "at most 20000 are allowed" in assert_error(response, 400, "invalid_image")["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "nonsense"])
def test_other_kinds(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    assert_error(client.post("/v1/caption", content=b"prompt=a", headers=headers), 415, "unsupported_media_type")
    body = json.dumps(chat_body()).encode()
    assert_error(client.post("/v1/chat/completions", content=body, headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a":' * 50_000],
    ids=lambda body: repr(body[:10]),
)
def test_json_that_is_none(client, body):
    headers = {"Content-Type": "application/json"}
    assert_error(client.post("/v1/chat/completions", content=body, headers=headers), 400)


def test_surrogates_in_a_question(client):
    body = json.dumps(chat_body()).replace('"content": [', '"content": [{"type": "text", "text": "a \\ud800 b"},')
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert_error(response, 400)


class TestMultipart:
    PART = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'

    @pytest.fixture
    def post(self, client):
        def send(body, kind="multipart/form-data; boundary=B", path="/v1/caption"):
            return client.post(path, content=body, headers={"Content-Type": kind})

        return send

    def test_whole(self, post):
        response = post(self.PART + SQUARES.read_bytes() + b"\r\n--B--\r\n")
        assert response.json()["results"][0]["text"] == "five red squares"

    def test_cut(self, post):
        whole = self.PART + SQUARES.read_bytes() + b"\r\n--B--\r\n"
        for end in (10, len(self.PART) - 2, len(self.PART) + 50, len(whole) - 8):
            assert_error(post(whole[:end]), 400, "invalid_multipart")

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            (b"", "multipart/form-data; boundary=B"),
            (b"--B--\r\n", "multipart/form-data; boundary=B"),
            (b"nothing of the kind", "multipart/form-data; boundary=B"),
            (b"--B\r\n\r\nno head\r\n--B--\r\n", "multipart/form-data; boundary=B"),
            (b"--B--\r\n", "multipart/form-data"),
            (b"--B--\r\n", "multipart/form-data; boundary="),
        ],
    )
    def test_wrong(self, post, body, kind):
        assert_error(post(body, kind), 400)

    def test_too_many_fields(self, post):
        field = b'--B\r\nContent-Disposition: form-data; name="label"\r\n\r\nx\r\n'
        assert_error(post(field * 5000 + b"--B--\r\n", path="/v1/classify"), 400)

    def test_a_field_that_is_no_text(self, post):
        field = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n'
        assert assert_error(post(field + b"--B--\r\n"), 400)["param"] == "prompt"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/caption", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("DELETE", "/", 405),
    ],
)
def test_paths_and_methods(client, method, path, status):
    assert_error(client.request(method, path, follow_redirects=False), status)


def test_what_is_no_http(server, client):
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in connection.recv(65536)
    assert_alive(client)


def test_nothing_failed(server):
    """Runs last: the server never answered 500, whatever came."""
    assert server.logs("failed") == []
    with server.client() as client:
        assert 'code="500"' not in client.get("/metrics").text
