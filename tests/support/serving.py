"""A server in a process of its own, on a port of loopback, and what one asks of it.

Run as a program, with GATE and arguments, it serves a model that waits while a file exists: to be loaded, to generate.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

import gitfast

from support.paths import EXAMPLES
from support.processes import ENVIRONMENT, PYTHON

IMAGES = sorted((EXAMPLES / "images").glob("*.png"))
SQUARES = EXAMPLES / "images" / "five-red-squares.png"
START_S = 60
_WITHOUT_KEY = {name: value for name, value in ENVIRONMENT.items() if name != "GITFAST_API_KEY"}


class Server:
    """A running server; its logs are read as they come."""

    def __init__(
        self,
        arguments: Sequence[object] = (),
        *,
        gate: Path | None = None,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        program = ["-m", "gitfast", "serve"] if gate is None else [str(Path(__file__)), str(gate)]
        self.process = subprocess.Popen(
            [*PYTHON, *program, "--port", "0", *map(str, arguments)],
            env={name: value for name, value in ENVIRONMENT.items() if name != "GITFAST_API_KEY"}
            | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.stderr: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        if wait:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()  # or the end of a process that failed
            assert " on http://" in line, "".join(self.stderr)
            self.url = line.split(" on ")[1].strip()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.stderr.extend(self.process.stderr)

    def client(self, **options: Any) -> httpx.Client:
        # No certificates: loading them takes longer than most requests.
        return httpx.Client(base_url=self.url, **{"timeout": 60.0, "trust_env": False, "verify": False, **options})

    def logs(self, event: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.stderr if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == event]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if it was never counted."""
        with self.client() as client:
            return metric(client.get("/metrics").text, name)

    def wait_for(self, name: str, expected: float, seconds: float = 30.0) -> None:
        """Wait until a metric is what it should become."""
        deadline = time.monotonic() + seconds
        while (found := self.metric(name)) != expected:
            assert time.monotonic() < deadline, f"{name} is {found}, not {expected}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.join()

    def join(self, seconds: float = 60) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join(5)


@contextlib.contextmanager
def running(
    arguments: Sequence[object] = (), *, gate: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    server = Server(arguments, gate=gate, environment=environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.join()


def metric(text: str, name: str) -> float:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)


def data_uri(image: Path | bytes, kind: str = "image/png") -> str:
    data = image if isinstance(image, bytes) else image.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chat_messages(image: Path | bytes | str, *texts: str) -> list[dict[str, Any]]:
    url = image if isinstance(image, str) else data_uri(image)
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    content += [{"type": "text", "text": text} for text in texts]
    return [{"role": "user", "content": content}]


def chat_body(image: Path | bytes | str = SQUARES, *texts: str, **options: Any) -> dict[str, Any]:
    return {"model": "git-tiny", "messages": chat_messages(image, *texts), **options}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which must end as OpenAI's do."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def assert_error(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape, that says nothing of the server; returns it."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code is not None:
        assert error["code"] == code, error
    assert "Traceback" not in response.text
    assert str(Path(gitfast.__file__).parents[1]) not in response.text
    assert "x-request-id" in response.headers
    return error


class GatedEngine:
    """An engine whose ``generate`` waits while a file exists, or until its call is cancelled."""

    def __init__(self, engine: Any, gate: Path) -> None:
        self._engine, self._gate = engine, gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        while self._gate.exists():
            if options.get("cancel") is not None:
                options["cancel"].check()
            time.sleep(0.005)
        return self._engine.generate(*arguments, **options)


def _serve_gated(gate: Path, arguments: list[str]) -> int:
    from gitfast import cli

    load = gitfast.load

    def load_gated(*positional: Any, **options: Any) -> Any:
        while gate.exists():
            time.sleep(0.01)
        model = load(*positional, **options)
        model.engine.engine = GatedEngine(model.engine.engine, gate)  # behind the cache
        return model

    cli.serve.load = load_gated  # type: ignore[assignment]
    return cli.main(["serve", *arguments])


if __name__ == "__main__":
    sys.exit(_serve_gated(Path(sys.argv[1]), sys.argv[2:]))
