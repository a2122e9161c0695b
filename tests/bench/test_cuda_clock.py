"""The GPU clock on a torch that only keeps account of what is captured, flushed and counted."""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from gitfast.bench.case import OURS, Case, Operands, Side
from gitfast.bench.cuda_clock import CALLS, FLUSH_BYTES, CudaClock


class FakeGraph:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def replay(self) -> None:
        self._log.append("replay")


class FakeTensor:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def amax(self) -> None:
        self._log.append("flush")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def clock(log: list[str]) -> CudaClock:
    """Every graph takes 4 ms."""
    names = itertools.cycle(["begin", "end"])

    def event(enable_timing: bool) -> SimpleNamespace:
        name = next(names)
        return SimpleNamespace(
            record=lambda: log.append(name), synchronize=lambda: None, elapsed_time=lambda other: 4.0
        )

    cuda = SimpleNamespace(
        get_device_properties=lambda index: SimpleNamespace(L2_cache_size=1000),
        synchronize=lambda: None,
        Stream=lambda: None,
        stream=lambda stream: contextlib.nullcontext(),
        CUDAGraph=lambda: FakeGraph(log),
        graph=lambda graph: contextlib.nullcontext(log.append("capture")),
        Event=event,
    )
    return CudaClock(SimpleNamespace(cuda=cuda, int64=None, zeros=lambda *shape, **options: FakeTensor(log)))


def operands(log: list[str], name: str) -> Operands:
    return Operands({OURS: Side(lambda: log.append(name))}, 1, lambda rows: np.ones(1))


def test_a_graph_holds_calls_on_all_operands_in_turn(clock, log):
    measure = clock.prepare(OURS, [operands(log, name) for name in "ab"], "cold")
    assert log == ["a", "b", "a", "capture", *"ab" * (CALLS // 2)]
    log.clear()
    assert measure() == pytest.approx(4e-3 / CALLS)
    assert log == ["flush", "begin", "replay", "end"]


def test_warm_rounds_follow_one_that_is_not_timed(clock, log):
    """Or the host would still be launching when the time begins."""
    measure = clock.prepare(OURS, [operands(log, "a")], "warm")
    log.clear()
    measure()
    assert log == ["replay", "begin", "replay", "end"]


@pytest.mark.parametrize(("num_bytes", "copies"), [(1, CALLS), (FLUSH_BYTES // 4, 5), (FLUSH_BYTES * 2, 1)])
def test_so_many_copies_that_none_is_found_in_the_cache(clock, num_bytes, copies):
    case = Case("k", "m", "s", "float32", flops=1, bytes=num_bytes, build=lambda: operands([], ""))
    assert clock.copies(case) == copies
