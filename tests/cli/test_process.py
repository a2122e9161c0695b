"""The command as a process of its own: signals, pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time

import pytest

from gitfast.cli import main

from support.processes import ENVIRONMENT, PYTHON
from support.tiers import slow

COMMAND = [*PYTHON, "-m", "gitfast"]


@pytest.fixture
def many_files(image_files):
    """More files than are done before a signal comes."""
    return [str(image_files[0])] * 10_000


def start(arguments, **streams) -> subprocess.Popen[bytes]:
    # A test run started in the background ignores Ctrl-C, and its children would inherit that.
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )


def test_runs_as_a_module():
    done = subprocess.run([*COMMAND, "--version"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("gitfast ")


def test_ctrl_c_ends_without_a_traceback(checkpoint_folder, many_files):
    arguments = ["caption", "--model", checkpoint_folder, *many_files]
    with start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"gitfast: interrupted\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_list_of_files_is_awaited(monkeypatch, capsys, checkpoint_folder, number, code):
    """Nobody writes to the list, and nothing has begun."""

    class Silent:
        buffer = None

        def read(self, size):
            signal.raise_signal(number)
            raise AssertionError("not interrupted")

    silent = Silent()
    silent.buffer = silent
    monkeypatch.setattr(sys, "stdin", silent)
    assert main(["caption", "--model", str(checkpoint_folder), "--files-from", "-"]) == code
    assert capsys.readouterr().err == "gitfast: interrupted\n"


def test_a_reader_that_leaves(checkpoint_folder, many_files):
    arguments = ["caption", "--model", checkpoint_folder, *many_files]
    with start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, errors) == (1, b"")


def test_progress_is_for_terminals(checkpoint_folder, image_files):
    def stderr_of(files, *, terminal: bool) -> bytes:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        with start(["caption", "--model", checkpoint_folder, *files], stdout=subprocess.PIPE, stderr=theirs) as process:
            os.close(theirs)
            process.communicate(timeout=60)
        written = b""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # how a terminal says that its last writer is gone
                break
            if not chunk:
                break
            written += chunk
        os.close(ours)
        return written

    assert b"5/5" in stderr_of(image_files, terminal=True)
    assert stderr_of(image_files[:1], terminal=True) == b""
    assert stderr_of(image_files, terminal=False) == b""


def test_file_names_that_are_no_text(checkpoint_folder, image_files, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    with open(odd, "wb") as file:
        file.write(image_files[0].read_bytes())
    command = [*COMMAND, "caption", "--model", checkpoint_folder, odd, odd + b".missing"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"\\udcff.png\t" in done.stdout
    assert b"\\udcff.png.missing" in done.stderr


@pytest.fixture(scope="module")
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


CLOSED, LEFT, FULL = "closed", "left by its reader", "full"
REASONS = {CLOSED: b"Bad file descriptor", FULL: b"No space left on device"}
STREAMS = [  # stdout, stderr; None: read
    (CLOSED, None),
    (None, CLOSED),
    (CLOSED, CLOSED),
    (FULL, None),
    (None, FULL),
    (FULL, FULL),
    (LEFT, None),
]
COMMANDS = [
    "--help",
    slow("--version"),
    *(slow(f"{command} --help") for command in ("caption", "answer", "video", "serve", "info", "convert", "bench")),
    slow("evaluate --help"),
    "evaluate captions --help",
    slow("evaluate vqa --help"),
    "info",
    slow("info --json"),
    "serve --port taken",
    slow("serve --port none"),
    slow("none"),
]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("stdout", "stderr"), STREAMS)
def test_standard_streams_that_take_nothing(command, stdout, stderr, taken_port):
    """End with an error where something cannot be said, by the exit code alone if there is no other way."""
    arguments = [taken_port if argument == "taken" else argument for argument in command.split()]
    reader, left = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(left, "wb"):
        to = {None: subprocess.PIPE, CLOSED: subprocess.DEVNULL, LEFT: left, FULL: full}

        def close() -> None:
            for descriptor, stream in ((1, stdout), (2, stderr)):
                if stream == CLOSED:
                    os.close(descriptor)

        done = subprocess.run(
            [*COMMAND, *arguments],
            env=ENVIRONMENT,
            stdout=to[stdout],
            stderr=to[stderr],
            preexec_fn=close,
            timeout=60,
            check=False,
        )
    wrong_usage = command in ("none", "serve --port none")
    said = done.stderr or b""
    if wrong_usage:
        assert done.returncode == 2
        assert b"error: argument" in said or stderr is not None
    elif "taken" in command:
        assert done.returncode == 1
        assert b"Address already in use" in said or stderr is not None
    else:
        assert done.returncode == (0 if stdout is None else 1)
        assert bool(done.stdout) == (stdout is None)
        expected = b"" if stdout not in REASONS else b"gitfast: standard output: " + REASONS[stdout] + b"\n"
        assert said == (b"" if stderr is not None else expected)
    assert b"Traceback" not in said
    assert said.count(b"\n") <= 1 or wrong_usage  # after usage
