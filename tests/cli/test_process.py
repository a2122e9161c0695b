"""The command as a process of its own: signals, pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from gitfast.cli import main

from support.processes import ENVIRONMENT, PYTHON

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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["caption", "--help"]], ids=" ".join)
def test_help_that_cannot_be_written_is_an_error(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PYTHON, "-m", "gitfast", *arguments],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"gitfast: standard output: No space left on device\n")
