"""A slice of every target: the same inputs each time. ``run.py`` beside this file tries as many as one likes."""

from __future__ import annotations

import subprocess  # what a fault starts is imported by then
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from support.fuzz.loop import Finding, Target, fuzz
from support.fuzz.targets import TARGETS
from support.processes import ENVIRONMENT, PYTHON

# Inputs of a second or so. Videos, conversions and requests take milliseconds each, and a small model is run for some.
EXECUTIONS = 300
FEWER = {"video": 40, "clip": 100, "convert": 60, "serve": 60, "engine": 100, "image-jpeg": 100}
SEED = b"abc"
# Where one input in thousands is accepted a slice need not have any.
RARELY_ACCEPTED = ("adapter-weights", "tokenizer-json", "convert")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(name: str, folder: Path) -> Target:
    if name.startswith(("video", "clip")):
        pytest.importorskip("av")
    return TARGETS[name](folder)


@pytest.mark.parametrize("name", TARGETS)
def test_a_slice(name: str, tmp_path: Path) -> None:
    outcome = fuzz(made(name, tmp_path), executions=FEWER.get(name, FEWER.get(name.partition("-")[0], EXECUTIONS)))
    assert outcome.accepted < outcome.executions
    assert outcome.accepted > 0 or name in RARELY_ACCEPTED


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute(name: str, tmp_path: Path) -> None:
    assert fuzz(made(name, tmp_path), seconds=60, seed=1).executions


def test_an_input_is_tried_again(tmp_path: Path) -> None:
    """Alone, in a process that has imported nothing before."""
    request = tmp_path / "request"
    request.write_bytes(TARGETS["serve"](tmp_path).seeds[0])
    command = [*PYTHON, str(Path(__file__).with_name("run.py")), "serve", "--input", str(request)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "accepted\n"), done.stderr


def test_faults_are_found(tmp_path: Path) -> None:
    """The loop itself: what it is there for, it notices."""

    def opened(_: bytes) -> None:
        with open(tmp_path.parent / "elsewhere", "w"):
            pass

    faults = {
        "ZeroDivisionError": lambda _: 1 / 0,
        "open: ": opened,
        "compile: ": lambda _: exec("1"),
        "import: ": lambda _: __import__("this"),
        "subprocess.Popen: ": lambda _: sys.modules["subprocess"].Popen(["true"]),
    }
    for message, read in faults.items():
        with pytest.raises(Finding, match=message):
            fuzz(Target(spared(read), [SEED], ValueError, [], tmp_path), executions=100)


def spared(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """A reader with a fault that no seed shows."""
    return lambda data: read(data) if data not in (SEED, b"of no format", b"") else None


def test_work_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr("support.fuzz.loop.MAX_CPU_S", 0.1)
    monkeypatch.setattr("support.fuzz.loop.MAX_GROWTH_BYTES", 50 << 20)
    growing: list[bytes] = []
    for read, message in ((lambda _: growing.append(b"x" * (1 << 20)), "MB more memory"), (busy, "TooMuchWork")):
        with pytest.raises(Finding, match=message):
            fuzz(Target(spared(read), [SEED], ValueError), executions=300)
