"""Images by URL: from hosts that are named, at public addresses, within bytes and time; otherwise not at all."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time

import pytest

from gitfast.serve.errors import ApiError
from gitfast.serve.fetch import Fetcher, is_global

from support.serving import SQUARES, assert_error, chat_body, running

IMAGE = SQUARES.read_bytes()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_global(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"]
)
def test_addresses_that_are(address):
    assert is_global(address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; keeps the Host headers that it was sent."""

    hosts: list[str] = []  # noqa: RUF012
    redirect = ""

    def do_GET(self):
        self.hosts.append(self.headers["Host"])
        if self.path == "/image":
            self.answer(200, IMAGE)
        elif self.path == "/redirect":
            self.answer(302, b"", {"Location": type(self).redirect})
        elif self.path == "/loop":
            self.answer(302, b"", {"Location": "/loop"})
        elif self.path == "/huge":
            self.answer(200, b"x" * 200_000)
        elif self.path == "/cut":
            self.answer(200, b"x" * 10, {"Content-Length": "1000"})
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        else:
            self.answer(404, b"")

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def make(port):
    """A fetcher for which the host "pictures.example" is the server above, at an address said to be public."""

    def make_one(**options):
        chosen = {
            "hosts": (f"pictures.example:{port}",),
            "max_bytes": 100_000,
            "timeout": 5.0,
            "resolve": lambda host, _: {"pictures.example": ["127.0.0.1"]}.get(host, ["10.0.0.1"]),
            "is_allowed": lambda address: address == "127.0.0.1",
        }
        return Fetcher(**{**chosen, **options})

    return make_one


def fetch(fetcher, port, path, host="pictures.example"):
    return fetcher.fetch(f"http://{host}:{port}{path}", "url")


def refused(fetcher, url) -> ApiError:
    with pytest.raises(ApiError) as caught:
        fetcher.fetch(url, "url")
    assert (caught.value.status, caught.value.param) == (400, "url")
    assert "127.0.0.1" not in caught.value.message
    return caught.value


def test_an_image(make, port):
    assert fetch(make(), port, "/image") == IMAGE
    assert Handler.hosts[-1] == f"pictures.example:{port}"


def test_hosts_that_are_not_named(make, port):
    fetcher = make()
    for url in (
        f"http://other.example:{port}/image",
        "http://pictures.example/image",  # another port
        f"http://pictures.example.evil.example:{port}/image",
        f"http://127.0.0.1:{port}/image",
        f"http://user@pictures.example:{port}/image",
        f"http://pictures.example:{port}@evil.example/image",
        f"ftp://pictures.example:{port}/image",
        "file:///etc/passwd",
        f"http://pictures.example:{port}/a b",
        f"http://pictures.example:{port}/a\r\nHost: evil",
        "http://[::1/image",
        "http:///image",
        f"//pictures.example:{port}/image",
    ):
        assert refused(fetcher, url).code == "url_not_allowed", url


def test_a_name_with_an_address_that_is_not_public(make, port):
    fetcher = make(is_allowed=is_global)
    assert "not public" in refused(fetcher, f"http://pictures.example:{port}/image").message
    mixed = make(resolve=lambda *_: ["127.0.0.1", "10.0.0.1"])
    assert "not public" in refused(mixed, f"http://pictures.example:{port}/image").message


def test_the_name_is_resolved_once(make, port):
    """A second answer, of another address, is never asked for."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    assert fetch(make(resolve=lambda *_: answers.pop(0)), port, "/image") == IMAGE
    assert len(answers) == 1


@pytest.mark.parametrize("place", ["http://other.example/a", "http://127.0.0.1:{port}/image", "file:///etc/passwd"])
def test_redirects_are_checked_again(make, port, place):
    Handler.redirect = place.format(port=port)
    assert refused(make(), f"http://pictures.example:{port}/redirect").code == "url_not_allowed"


def test_redirects_to_an_address_that_is_not_public(make, port):
    Handler.redirect = f"http://inside.example:{port}/image"
    fetcher = make(hosts=(f"pictures.example:{port}", f"inside.example:{port}"))
    assert "not public" in refused(fetcher, f"http://pictures.example:{port}/redirect").message


@pytest.mark.parametrize("place", ["http://[", "http://[::1", "//[x]/"])
def test_redirects_to_what_is_no_url(make, port, place):
    Handler.redirect = place
    assert refused(make(), f"http://pictures.example:{port}/redirect").code in ("url_not_fetched", "url_not_allowed")


def test_a_redirect_that_is_allowed(make, port):
    Handler.redirect = "/image"
    assert fetch(make(), port, "/redirect") == IMAGE


@pytest.mark.parametrize(
    ("path", "message"),
    [("/loop", "redirects"), ("/huge", "more than 100000 bytes"), ("/cut", "url: "), ("/missing", "status 404")],
)
def test_answers_that_are_no_image(make, port, path, message):
    error = refused(make(), f"http://pictures.example:{port}{path}")
    assert message in error.message
    assert error.code == "url_not_fetched"


def test_time_is_bounded_as_a_whole(make, port):
    begin = time.monotonic()
    assert refused(make(timeout=0.5), f"http://pictures.example:{port}/slow").code == "url_not_fetched"
    assert time.monotonic() - begin < 20


def test_nobody_listens(make):
    fetcher = make(hosts=("pictures.example:1",))
    assert refused(fetcher, "http://pictures.example:1/image").code == "url_not_fetched"


@pytest.mark.slow
def test_a_server_that_may_fetch_still_refuses_its_own_network(port):
    with running(["--allow-url-host", f"localhost:{port}"]) as server, server.client() as client:
        response = client.post("/v1/chat/completions", json=chat_body(f"http://localhost:{port}/image"))
        assert "not public" in assert_error(response, 400, "url_not_allowed")["message"]
        other = client.post("/v1/chat/completions", json=chat_body("http://example.com/image"))
        assert_error(other, 400, "url_not_allowed")
