"""Steps that the CUDA engine enqueues again and again, with graphs that only record the calls made on them."""

from __future__ import annotations

import contextlib

import pytest
import torch

from gitfast.engines.cuda.graphs import CapturedStep, capture


class Stream:
    """One stream for all."""

    device = torch.device("cuda")

    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes of everything that happened, in order."""
    notes: list[str] = []

    class Graph:
        def capture_begin(self, pool: object, capture_error_mode: str) -> None:
            notes.append("begin")

        def capture_end(self) -> None:
            notes.append("end")
            if notes[-2] == "failure":
                raise RuntimeError("the capture was invalidated")

        def replay(self) -> None:
            notes.append("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    return notes


def test_the_second_time_is_captured(noted: list[str]) -> None:
    step = CapturedStep()
    for _ in range(3):
        step(lambda: noted.append("work"), capture)
    assert noted == ["work", "begin", "work", "end", "replay", "replay"]


def test_an_error_ends_the_capture_and_is_told(noted: list[str]) -> None:
    step = CapturedStep()
    step(lambda: noted.append("work"), capture)

    def fail() -> None:
        noted.append("failure")
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="9 GiB"):
        step(fail, capture)
    step(lambda: noted.append("work"), capture)
    assert noted == ["work", "begin", "failure", "end", "begin", "work", "end", "replay"]


def test_without_a_device_nothing_is_captured(noted: list[str]) -> None:
    step = CapturedStep()
    for _ in range(3):
        step(lambda: noted.append("work"), None)
    assert noted == ["work"] * 3
