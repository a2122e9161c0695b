"""The command line on a terminal: progress, durations, and outputs that fill up or close."""

from __future__ import annotations

import io
import sys

import pytest

from gitfast.cli import console
from gitfast.cli.console import Console, bar, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(Terminal):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which tests move."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((5, 10, 2.5, 0, 60), f"[{'#' * 17}{'.' * 18}] 5/10  2.5/s  0:02 left"),
        ((5, 10, 2.5, 1, 40), "5/10  2.5/s  0:02 left  1 failed"),
        ((0, 10, 0.0, 0, 20), "0/10  0.0/s"),
        ((7, None, 2.0, 0, 60), "7 done  2.0/s"),
        ((12, 10, 1.0, 0, 15), "12/10  1.0/s  0"),
        ((5, 10, 2.5, 0, 0), ""),
    ],
)
def test_bar(arguments, expected):
    assert bar(*arguments) == expected
    assert len(expected) <= arguments[-1]


def test_a_full_bar_is_full_and_no_more():
    assert bar(10, 10, 1.0, 0, 80).startswith("[" + "#" * 40 + "]")
    assert "#" * 41 not in bar(20, 10, 1.0, 0, 80)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(7.9, "0:07"), (754, "12:34"), (3723, "1:02:03"), (10**6, "277:46:40")]
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_progress_on_a_terminal(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    shown = Console(lambda: 100)
    shown._counting.join()
    clock[0] += 10
    shown.progress(20, 10, 0)  # ten by an earlier run
    assert "20/100  1.0/s  1:20 left" in terminal.getvalue()
    shown.progress(21, 10, 0)
    assert "21/100" not in terminal.getvalue(), "not more often than one can see"
    shown.message("a\x1b[2Jb")
    assert terminal.getvalue().endswith("\r\x1b[Kgitfast: a\\x1b[2Jb\n")
    shown.progress(100, 10, 0)
    shown.close()
    assert "100/100" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_drawn_for_one_input_or_elsewhere(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for count in (lambda: 1, None):
        shown = Console(count)
        clock[0] += 10
        shown.progress(1, 0, 0)
        shown.close()
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    shown = Console(lambda: 100)
    shown.progress(1, 0, 0)
    shown.close()
    assert file.getvalue() == ""


def test_a_terminal_that_takes_nothing_stops_nothing(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", Full())
    shown = Console(lambda: 100)
    clock[0] += 10
    shown.progress(1, 0, 0)
    shown.message("lost")
    shown.close()
