"""Encoding by CUDA graphs, simulated: kernels in a capture are remembered and not run, a replay runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gitfast.engines.cuda.encoder import Encoder
from gitfast.engines.cuda.engine import CudaEngine

from support.cuda.encoder_cases import assert_near, expected, make_engine, random_pixels, write_model

COMPUTE = Encoder.__call__


class Stream:
    """A stream on which nothing is enqueued. Notes the streams whose events it waits for."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        assert event.stream is not None
        self.waited.append(event.stream)


class Event:
    """An event that knows where it was recorded."""

    stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream = stream


class Graphs:
    """All captured graphs; ``most`` is the largest batch that there is memory to capture."""

    def __init__(self) -> None:
        self.captured: list[Graph] = []
        self.capturing: Graph | None = None
        self.most = 64
        self.eager: list[int] = []
        self.streams = [Stream()]  # the last is the current one

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    def call(self, encoder: Encoder, inputs, kind, out) -> None:
        """Stand in for ``Encoder.__call__``."""
        if self.capturing is None:
            self.eager.append(len(out.data))
            COMPUTE(encoder, inputs, kind, out)
        elif len(out.data) > self.most:
            self.capturing.broken = True
            raise torch.OutOfMemoryError("no memory for a graph")
        else:
            self.capturing.calls.append((encoder, inputs, kind, out))


class Graph:
    """The graph of one encoder call."""

    def __init__(self, state: Graphs) -> None:
        self.state, self.calls, self.replays = state, [], 0
        self.shares: object = None
        self.broken = False

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        assert len(self.state.streams) == 2, "captures on a stream of its own"
        self.shares, self.state.capturing = pool, self

    def capture_end(self) -> None:
        self.state.capturing = None
        if self.broken:
            raise RuntimeError("the capture was invalidated")
        self.state.captured.append(self)

    def pool(self) -> object:
        return self.shares or self

    def replay(self) -> None:
        (call,) = self.calls
        self.replays += 1
        COMPUTE(*call)


@pytest.fixture
def graphs(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    state = Graphs()
    monkeypatch.setattr(Encoder, "__call__", lambda *arguments: state.call(*arguments))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(state))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", state.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: state.streams[-1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1000 * len(state.captured))
    return state


def capturing_engine(folder: Path) -> CudaEngine:
    """An engine on the CPU that behaves as if there were graphs."""
    engine = make_engine(folder, "cpu")
    engine._images._captures = torch.cuda.Stream()
    return engine


def test_a_plan_used_again_is_captured_once(tmp_path: Path, graphs: Graphs) -> None:
    folder = write_model(tmp_path)
    pixels, engine = random_pixels(6, 3, 32, 32), capturing_engine(folder)
    truth = expected(folder, pixels)
    for first in (0, 2, 4, 0):
        assert_near(engine.encode(pixels[first : first + 2]), truth[first : first + 2], 0.01)
    for image in (0, 1, 2):
        assert_near(engine.encode(pixels[image : image + 1]), truth[image : image + 1], 0.01)
    assert graphs.eager == [2, 1]
    pair, single = graphs.captured
    assert (pair.replays, single.replays) == (3, 2)
    assert pair.shares is None
    assert single.shares is pair, "graphs share the memory they work in"
    assert [plan.captured for plan in engine.plans()] == [True, True]


def test_memory_that_does_not_suffice_for_a_graph(tmp_path: Path, graphs: Graphs) -> None:
    folder = write_model(tmp_path)
    pixels, engine = random_pixels(4, 3, 32, 32), capturing_engine(folder)
    truth = expected(folder, pixels)
    graphs.most = 2
    for _ in range(4):
        assert_near(engine.encode(pixels), truth, 0.01)
    assert [(plan.images, plan.captured) for plan in engine.plans()] == [(2, True)]
    assert graphs.eager == [4, 2]
    assert np.all([len(graph.calls[0][3].data) == 2 for graph in graphs.captured])
    assert graphs.capturing is None
    assert len(graphs.streams) == 1


def test_batches_of_several_streams_take_turns(tmp_path: Path, graphs: Graphs) -> None:
    """They work in the same memory, though their calls return before it is free."""
    folder = write_model(tmp_path)
    pixels, engine = random_pixels(1, 3, 32, 32), capturing_engine(folder)
    first, second = Stream(), Stream()
    for stream in (first, second, second, first):
        graphs.streams = [stream]
        engine.encode(pixels)
    assert second.waited == [first, second]
    assert first.waited == [second]
