"""A Hub that drips: each byte begins its client's timeouts again."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gitfast.checkpoints import fetching

from support.processes import run_python
from support.tiny_checkpoint import write_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """A Hub of one repository, "a/b", the paths of which that contain ``dripping`` are answered byte by byte."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.dripping = "nothing"
        self.pieces = 0
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            body = self.server.files[self.path.split("/")[-1]]
        elif "/tree/" in self.path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"}
                for name, data in self.server.files.items()
            ]
            body = json.dumps(entries).encode()
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            body = json.dumps({"id": "a/b", "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        for name, value in (
            ("Content-Length", str(len(body))),
            ("Content-Type", "application/json"),
            ("X-Repo-Commit", COMMIT),
            ("ETag", f'"{len(body):040x}"'),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.dripping not in self.path:
            self.wfile.write(body)
            return
        for index in range(len(body)):  # the checkpoint would take minutes
            if self.server.over.wait(0.05):
                return
            self.wfile.write(body[index : index + 1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(write_checkpoint(tmp_path / "served"))
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.over.set()
    hub.shutdown()
    hub.server_close()


def load(hub: Hub, cache: Path) -> str:
    """Load "a/b" in a process, which has a minute to end; return what it prints."""
    code = """
        import sys, gitfast
        from gitfast.checkpoints import fetching
        fetching.STALL_TIMEOUTS = 3
        try:
            print("loaded", gitfast.load("a/b", cache_dir=sys.argv[1]).name)
        except gitfast.CheckpointError as error:
            print(error)
    """
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    ended = run_python("if True:" + code, cache, environment=environment)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    return ended.stdout.strip()


def test_an_answer_that_drips(served: Hub, tmp_path: Path) -> None:
    served.dripping = "/api/"
    assert load(served, tmp_path / "cache").startswith("a/b: not in the cache")
    served.dripping = "nothing"
    assert load(served, tmp_path / "cache") == "loaded a/b"
    served.dripping = "/api/"
    assert load(served, tmp_path / "cache") == "loaded a/b"  # from the cache


@pytest.mark.parametrize("dripping", ["/tree/", "/resolve/", "model.safetensors"])
def test_a_download_that_drips(served: Hub, tmp_path: Path, dripping: str) -> None:
    served.dripping = dripping
    found = load(served, tmp_path / "cache")
    assert found.startswith("a/b: not in the cache")
    assert found.endswith("is too slow: less than 1 MiB came in 3 s")


def test_what_is_slow_and_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_POLL_SECONDS", 0.01)
    begin = time.monotonic()

    def progress() -> int:
        return int((time.monotonic() - begin) * 20 * fetching.LEAST_BYTES)

    def call() -> str:
        time.sleep(0.8)
        return "done"

    assert fetching._within(call, 0.2, progress) == "done"
    with pytest.raises(fetching.StalledError):
        fetching._within(call, 0.2, lambda: progress() // 100)


def test_an_error_of_the_call_is_its_own() -> None:
    def call() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        fetching._within(call, 1, lambda: 0)
