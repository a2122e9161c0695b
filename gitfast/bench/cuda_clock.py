"""Timing on a GPU: inside CUDA graphs, without launches from Python; and the rates that no kernel can beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gitfast.bench.case import Case, Operands
from gitfast.bench.ceilings import Ceilings, Gemm

FLUSH_BYTES = 256 << 20  # more than any L2
CALLS = 20  # in one graph
GEMM = 8192


class CudaClock:
    """Timing by CUDA graphs. Cold: each call has memory of its own, and caches hold other data before each round.

    Caches are filled by reading: written data would be written back while a round is timed. Warm: after a round that is
    not timed. Either way the device is at work while the host enqueues a round: on an idle one the time of its launch,
    some microseconds, would count as the calls'.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._flush = torch.zeros(FLUSH_BYTES // 8, dtype=torch.int64, device="cuda")
        self.cache_bytes: int = torch.cuda.get_device_properties(0).L2_cache_size

    def ceilings(self, rounds: int) -> Ceilings:
        """Measure a large copy and large products: the fastest of the rounds, after one that warms up."""
        torch = self._torch
        source = torch.empty_like(self._flush)
        copy = self._fastest(lambda: self._flush.copy_(source), rounds)
        gemm = {}
        for dtype in ("float32", "bfloat16"):
            a, b = (torch.randn(GEMM, GEMM, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
            gemm[dtype] = Gemm(2 * GEMM**3 / self._fastest(lambda: a @ b, rounds) / 1e12, "torch")  # noqa: B023
        return Ceilings("copy", 2 * FLUSH_BYTES / copy / 1e9, gemm)

    def _fastest(self, call: Callable[[], object], rounds: int) -> float:
        graph = self._graph([call] * CALLS)
        return min(self._seconds(graph) for _ in range(rounds + 1))

    def copies(self, case: Case) -> int:
        """Return the number of operands with which no call finds its own in the cache."""
        return min(CALLS, int(FLUSH_BYTES // max(case.bytes, 1)) + 1)

    def prepare(self, name: str, copies: Sequence[Operands], cache: str) -> Callable[[], float]:
        """Return a function that measures one round of a side: seconds per call."""
        graph = self._graph([copies[i % len(copies)].sides[name].call for i in range(CALLS)])

        def measure() -> float:
            self._flush.amax() if cache == "cold" else graph.replay()
            return self._seconds(graph)

        return measure

    def _graph(self, calls: Sequence[Callable[[], object]]) -> Any:
        torch = self._torch
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for call in calls[:3]:  # loads kernels, which a capture may forbid
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def _seconds(self, graph: Any) -> float:
        """Return seconds per call."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / CALLS
