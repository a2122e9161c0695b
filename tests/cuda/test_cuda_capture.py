"""Encoding by graphs that are simulated: kernels in a capture are remembered and not run, a replay runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoder_cases import assert_near, expected, make_engine, random_pixels, write_model

from gitfast.engines import cuda_images
from gitfast.engines.cuda_encoder import Encoder


class Graph:
    """Of one call of an encoder."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.replays = 0
        self.shares: object = None

    def pool(self) -> object:
        return self.shares or self

    def replay(self) -> None:
        assert len(self.calls) == 1
        self.replays += 1
        COMPUTE(*self.calls[0])


COMPUTE = Encoder.__call__


@pytest.fixture
def graphs(emulation, device: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """All that were captured; ``most`` is the largest batch that there is memory to capture."""
    if device != "cpu":
        pytest.skip("graphs are real there")
    state = SimpleNamespace(captured=[], capturing=None, most=64, eager=[])

    @contextlib.contextmanager
    def capture(graph: Graph, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        graph.shares, state.capturing = pool, graph
        try:
            yield
        except torch.OutOfMemoryError:
            raise RuntimeError("capture was invalidated") from None
        finally:
            state.capturing = None
        state.captured.append(graph)

    def call(self: Encoder, inputs, kind, out) -> None:
        if state.capturing is None:
            state.eager.append(len(out.data))
            COMPUTE(self, inputs, kind, out)
        elif len(out.data) > state.most:
            raise torch.OutOfMemoryError("no memory for a graph")
        else:
            state.capturing.calls.append((self, inputs, kind, out))

    monkeypatch.setattr(Encoder, "__call__", call)
    monkeypatch.setattr(cuda_images, "_can_capture", lambda _: True)
    for name, fake in (("graph", capture), ("CUDAGraph", Graph), ("empty_cache", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1000 * len(state.captured))
    return state


def test_a_plan_used_again_is_captured_once(tmp_path: Path, device: str, graphs: SimpleNamespace) -> None:
    folder = write_model(tmp_path)
    pixels, engine = random_pixels(6, 3, 32, 32), make_engine(folder, device)
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


def test_memory_that_does_not_suffice_for_a_graph(tmp_path: Path, device: str, graphs: SimpleNamespace) -> None:
    folder = write_model(tmp_path)
    pixels, engine = random_pixels(4, 3, 32, 32), make_engine(folder, device)
    truth = expected(folder, pixels)
    graphs.most = 2
    for _ in range(4):
        assert_near(engine.encode(pixels), truth, 0.01)
    assert [(plan.images, plan.captured) for plan in engine.plans()] == [(2, True)]
    assert graphs.eager == [4, 2]
    assert np.all([len(graph.calls[0][3].data) == 2 for graph in graphs.captured])
