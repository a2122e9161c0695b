"""Starting, stopping, logs, metrics, the key: what those who run a server see."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest

from gitfast.cli import main
from gitfast.errors import EngineError
from gitfast.serve.server import _listen

from support.processes import run_python
from support.serving import (
    SQUARES,
    Server,
    assert_error,
    chat_body,
    events_of,
    metric,
    running,
)
from support.tiny_checkpoint import write_checkpoint

HEADERS = {"Content-Type": "image/png"}


def caption(client, **headers):
    return client.post("/v1/caption", content=SQUARES.read_bytes(), headers=HEADERS | headers)


def test_a_port_is_taken_before_the_model_is_loaded():
    with _listen("127.0.0.1", 0) as first, pytest.raises(EngineError, match="cannot listen there: Address already in"):
        _listen("127.0.0.1", first.getsockname()[1])


class TestStop:
    def test_sigterm_when_idle(self):
        with running() as server:
            with server.client() as client:
                assert caption(client).status_code == 200  # a connection that is kept alive
                assert server.stop() == 0
            assert [entry["signal"] for entry in server.logs("draining")] == ["SIGTERM"]
            assert len(server.logs("stopped")) == 1
            assert "Traceback" not in "".join(server.stderr)

    @pytest.mark.slow
    def test_ctrl_c(self):
        with running() as server:
            assert server.stop(signal.SIGINT) == 130
            assert "Traceback" not in "".join(server.stderr)

    def test_sigterm_under_load(self, tmp_path):
        """Admitted requests and streams finish, later ones are refused, and the exit code is 0."""
        gate = tmp_path / "closed"
        with running(["--max-running", 3], gate=gate) as server:
            gate.touch()
            with ThreadPoolExecutor(8) as pool, server.client(limits=httpx.Limits(max_connections=None)) as client:
                plain = [pool.submit(caption, client) for _ in range(5)]
                stream = pool.submit(client.post, "/v1/chat/completions", json=chat_body(stream=True))
                server.wait_for("gitfast_queue_depth", 3)
                with server.client() as late:
                    assert late.get("/readyz").status_code == 200
                    server.process.send_signal(signal.SIGTERM)
                    deadline = time.monotonic() + 30
                    while not server.logs("draining"):
                        assert time.monotonic() < deadline
                        time.sleep(0.02)
                    with contextlib.suppress(httpx.TransportError):  # or refused by its connection
                        assert_error(caption(late), 503, "shutting_down")
                gate.unlink()
                assert [f.result().json()["results"][0]["text"] for f in plain] == ["five red squares"] * 5
                pieces = [e["choices"][0]["delta"].get("content", "") for e in events_of(stream.result().text)]
                assert "".join(pieces) == "five red squares"
            assert server.join() == 0
            assert "Traceback" not in "".join(server.stderr)

    @pytest.mark.parametrize(
        ("framing", "some"), [("Content-Length: 1000", "some"), ("Transfer-Encoding: chunked", "4\r\nsome\r\n")]
    )
    def test_a_body_that_has_not_arrived_is_not_waited_for(self, tmp_path, framing, some):
        """It would not be admitted; a request that was is answered all the same."""
        gate = tmp_path / "closed"
        half = f"POST /v1/caption HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{some}"
        limits = ["--body-timeout", 1000, "--drain-seconds", 1000]
        with running(limits, gate=gate) as server, contextlib.ExitStack() as connections:
            gate.touch()
            with ThreadPoolExecutor(1) as pool, server.client() as client:
                whole = pool.submit(caption, client)
                server.wait_for("gitfast_running_requests", 1)
                address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
                halves = [connections.enter_context(socket.create_connection(address, 60)) for _ in range(3)]
                for connection in halves:
                    connection.sendall(half.encode())
                with server.client() as other:
                    assert other.get("/healthz").status_code == 200  # the halves before it are being read
                server.process.send_signal(signal.SIGTERM)
                for connection in halves:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 503")
                gate.unlink()
                assert whole.result().json()["results"][0]["text"] == "five red squares"
            assert server.join() == 0
            codes = [entry["code"] for entry in server.logs("request") if entry["status"] == 503]
            assert codes == ["shutting_down"] * 3
            assert "Traceback" not in "".join(server.stderr)

    @pytest.mark.slow
    def test_a_client_that_reads_nothing_is_not_waited_for(self):
        with running(["--drain-seconds", 1000]) as server, socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((urlsplit(server.url).hostname, urlsplit(server.url).port))
            answered = -1
            while answered < (answered := len(server.logs("request"))):  # until answers fill all buffers
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
                deadline = time.monotonic() + 2
                while len(server.logs("request")) == answered and time.monotonic() < deadline:
                    time.sleep(0.01)
            assert server.stop() == 0
            assert "Traceback" not in "".join(server.stderr)

    def test_a_client_that_sends_requests_at_once_and_leaves_is_no_failure(self):
        with running() as server:
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect((urlsplit(server.url).hostname, urlsplit(server.url).port))
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
                answered = -1
                while answered < (answered := len(server.logs("request"))):  # until answers fill all buffers
                    time.sleep(2)
                reset = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            with server.client() as client:
                assert client.get("/healthz").status_code == 200
            assert server.stop() == 0
            assert server.logs("failed") == []
            assert "Traceback" not in "".join(server.stderr)

    def test_the_drain_ends(self, tmp_path):
        """Requests that outlast it get 503, and the process still exits 0."""
        gate = tmp_path / "closed"
        with running(["--drain-seconds", 0.3], gate=gate) as server:
            gate.touch()
            with ThreadPoolExecutor(1) as pool, server.client() as client:
                held = pool.submit(caption, client)
                server.wait_for("gitfast_running_requests", 1)
                server.process.send_signal(signal.SIGTERM)
                assert_error(held.result(), 503, "shutting_down")
                gate.unlink()
            assert server.join() == 0

    def test_a_second_signal_ends_at_once(self, tmp_path):
        gate = tmp_path / "closed"
        with running(gate=gate) as server:
            gate.touch()
            with ThreadPoolExecutor(1) as pool, server.client() as client:
                held = pool.submit(client.post, "/v1/chat/completions", json=chat_body(stream=True))
                server.wait_for("gitfast_running_requests", 1)
                server.process.send_signal(signal.SIGTERM)
                deadline = time.monotonic() + 30
                while not server.logs("draining"):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                server.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(httpx.TransportError):
                    held.result()
                gate.unlink()
            assert server.join() == 0
            assert "Traceback" not in "".join(server.stderr)

    def test_a_signal_while_the_model_is_loaded(self):
        """The model comes between the signal and the end."""
        code = """
            import os, signal, socket, threading
            import gitfast
            from gitfast.serve import logs
            from gitfast.serve.server import serve
            from gitfast.serve.settings import Settings

            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]

            draining, log = threading.Event(), logs.log

            def note(event, **facts):
                if event == "draining":
                    draining.set()
                log(event, **facts)

            logs.log = note

            def load():
                model = gitfast.load()
                os.kill(os.getpid(), signal.SIGTERM)
                draining.wait()
                return model

            print(serve(load, Settings(), host="127.0.0.1", port=port))
        """
        ended = run_python(textwrap.dedent(code))
        assert (ended.returncode, ended.stdout) == (0, "0\n")
        assert "Traceback" not in ended.stderr


class TestStart:
    @pytest.mark.slow
    def test_a_model_that_is_not_there(self):
        server = Server(["--model", "git-tinny"], wait=False)
        assert server.join() == 1
        assert server.stderr[-1].startswith("gitfast: git-tinny: not a folder")

    def test_a_port_that_is_taken(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
        assert "cannot listen there: Address already in use" in capsys.readouterr().err

    def test_an_address_that_nobody_reads(self):
        """The log has it, too."""
        server = Server(wait=False)
        try:
            server.process.stdout.close()
            deadline = time.monotonic() + 60
            while not (ready := server.logs("ready")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert httpx.get(f"{ready[0]['url']}/readyz", trust_env=False).status_code == 200
            assert server.stop() == 0
            assert "Traceback" not in "".join(server.stderr)
        finally:
            server.process.kill()
            server.join()

    @pytest.mark.parametrize("arguments", [["--port", "70000"], ["--timeout", "soon"], ["--max-queue", "-1"]])
    def test_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit) as exit_:
            main(["serve", *arguments])
        assert exit_.value.code == 2
        assert "expected" in capsys.readouterr().err

    def test_a_timeout_of_nothing(self, capsys):
        assert main(["serve", "--timeout", "0"]) == 1
        assert "timeout: expected a positive number" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_folder_is_served_by_its_last_name(self, tmp_path):
        folder = write_checkpoint(tmp_path / "secret-place" / "my-model")
        with running(["--model", folder]) as server, server.client() as client:
            (found,) = client.get("/v1/models").json()["data"]
            assert found["id"] == "my-model"
            bad = client.post("/v1/chat/completions", json=chat_body(model=str(folder)))
            assert "secret-place" not in assert_error(bad, 404, "model_not_found")["message"]

    def test_it_listens_on_this_machine_alone(self, server):
        assert server.url.startswith("http://127.0.0.1:")


@pytest.fixture(scope="module")
def locked_server():
    """With a key from the environment, and texts in its logs."""
    with running(["--log-texts"], environment={"GITFAST_API_KEY": "open sesame"}) as found:
        yield found


@pytest.fixture(scope="module")
def locked(locked_server):
    with locked_server.client() as found:
        yield found


class TestKey:
    @pytest.mark.parametrize(
        "sent", [None, "Bearer", "Bearer open", "Bearer open sesame!", "Basic open sesame", "Bearer \xff\xfe"]
    )
    def test_without(self, locked, sent):
        headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
        for path in ("/v1/models", "/metrics"):
            response = locked.get(path, headers=headers)
            assert_error(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert_error(locked.post("/v1/chat/completions", json=chat_body(), headers=headers), 401)
        assert_error(locked.get("/v1/nothing", headers=headers), 401)

    def test_with(self, locked):
        headers = {"Authorization": "Bearer open sesame"}
        assert locked.get("/v1/models", headers=headers).status_code == 200
        assert locked.post("/v1/chat/completions", json=chat_body(), headers=headers).status_code == 200

    def test_what_needs_none(self, locked):
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
            assert locked.get(path).status_code == 200


class TestLogs:
    def entry(self, server, request_id):
        deadline = time.monotonic() + 10
        while True:
            found = [entry for entry in server.logs("request") if entry["request_id"] == request_id]
            if found:
                return found[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_a_request_and_its_id(self, server, client):
        response = caption(client, **{"X-Request-ID": "mine-42"})
        assert response.headers["x-request-id"] == "mine-42"
        entry = self.entry(server, "mine-42")
        assert (entry["route"], entry["status"], entry["method"]) == ("/v1/caption", 200, "POST")
        assert entry["seconds"] > 0
        assert set(entry["timings"]) == {"queue", "encode", "generate"}

    @pytest.mark.parametrize("given", ["", "two words", "x" * 200, 'quote"', "über"])
    def test_ids_that_are_not_taken(self, client, given):
        response = client.get("/healthz", headers={"X-Request-ID": given.encode()})
        assert response.headers["x-request-id"] != given
        assert len(response.headers["x-request-id"]) == 32

    def test_errors_are_logged_by_their_code(self, server, client):
        client.post("/v1/caption", content=b"no", headers=HEADERS | {"X-Request-ID": "bad-1"})
        assert self.entry(server, "bad-1")["code"] == "invalid_image"

    def test_no_text_of_a_request(self, server, client):
        client.post(
            "/v1/chat/completions", json=chat_body(SQUARES, "is the zebra red?"), headers={"X-Request-ID": "q-1"}
        )
        self.entry(server, "q-1")
        everything = "".join(server.stderr)
        assert "zebra" not in everything
        assert "five red squares" not in everything
        assert "base64" not in everything

    def test_texts_when_asked_for(self, locked_server, locked):
        headers = {"X-Request-ID": "q-2", "Authorization": "Bearer open sesame"}
        body = chat_body(SQUARES, "what color are the squares?")
        locked.post("/v1/chat/completions", json=body, headers=headers)
        entry = self.entry(locked_server, "q-2")
        assert (entry["asked"], entry["reply"]) == (["what color are the squares?"], ["red"])

    def test_every_line_is_json(self, server):
        for line in server.stderr:
            assert {"time", "level", "event"} <= set(json.loads(line))


class TestMetrics:
    def test_names(self, client):
        caption(client)
        client.post("/v1/chat/completions", json=chat_body(stream=True))
        text = client.get("/metrics").text
        for name in (
            "gitfast_requests_total",
            "gitfast_request_seconds_bucket",
            "gitfast_first_token_seconds_count",
            "gitfast_queue_seconds_sum",
            "gitfast_queue_depth",
            "gitfast_running_requests",
            "gitfast_encode_seconds_count",
            "gitfast_generate_seconds_count",
            "gitfast_generated_tokens_total",
            "gitfast_cancelled_total",
            "gitfast_engine_decode_steps_total",
            "gitfast_engine_encoded_images_total",
            "gitfast_prefix_cache_hits_total",
            "gitfast_prefix_cache_bytes",
        ):
            assert f"\n{name}" in f"\n{text}", name
        assert all(line.startswith(("gitfast_", "#")) for line in text.splitlines())

    def test_counts(self, client):
        def counts():
            text = client.get("/metrics").text
            names = ("gitfast_generated_tokens_total", "gitfast_prefix_cache_hits_total", "gitfast_images_total")
            return [metric(text, name) for name in names]

        caption(client)
        before = counts()
        caption(client)
        assert counts() == [before[0] + 4, before[1] + 1, before[2] + 1]

    def test_unknown_paths_share_a_label(self, client):
        for i in range(5):
            client.get(f"/no-{i}")
        text = client.get("/metrics").text
        assert "/no-" not in text
        assert 'route="other"' in text


def test_health(client):
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    assert client.head("/").status_code == 200


def test_headers_of_every_answer(client):
    for path in ("/healthz", "/v1/models", "/nothing", "/metrics"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_it_says_that_it_is_loading(tmp_path):
    """Before the model is there the process lives, and is not ready."""
    gate = tmp_path / "closed"
    gate.touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(["--port", port], gate=gate, wait=False)
    server.url = f"http://127.0.0.1:{port}"
    try:
        with server.client() as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
            assert_error(caption(client), 503, "loading")
            assert_error(client.get("/v1/models"), 503, "loading")
            gate.unlink()
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert caption(client).status_code == 200
    finally:
        server.process.kill()
        server.join()
