"""Timing on the CPU: cold and warm caches, and the rates that no kernel can beat."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gitfast import ops
from gitfast.bench.case import OURS, Case, Operands
from gitfast.bench.ceilings import Ceilings, Gemm
from gitfast.engines.cpu import DTYPES

PAUSE = 0.02  # seconds after which the threads of the other side have stopped spinning
CALL_TIME, MOST_CALLS = 0.005, 20  # a round takes about as long, and has no more calls
FLUSH_BYTES = (64 << 20, 2 << 30)  # at least and at most
# Products (M, N, K). The second is for many threads; the first is over before a shared CPU serves somebody else.
GEMMS = ((128, 1024, 1024), (512, 4096, 1024))


class CpuClock:
    """Times sides on ``pool`` and on as many threads of torch."""

    def __init__(self, pool: ops.ThreadPool, torch: Any | None) -> None:
        self._pool, self._torch = pool, torch
        self.cache_bytes = last_level_caches(pool.num_threads)
        size = min(max(2 * self.cache_bytes, FLUSH_BYTES[0]), FLUSH_BYTES[1])
        self._memory = np.array_split(np.ones(size // 4, np.float32), pool.num_threads)
        self._readers = ThreadPoolExecutor(pool.num_threads)
        self._packed = ops.PackedWeight(np.ones((64 * pool.num_threads, 8), np.float32))
        self._few = np.ones((1, 8), np.float32)

    def ceilings(self, rounds: int) -> Ceilings:
        """Measure the ceilings: the fastest of the rounds, after two that warm up."""
        size = sum(part.nbytes for part in self._memory)
        reading = _fastest(self._read, rounds)
        gemm = {dtype: self._gemm(dtype, rounds) for dtype in DTYPES}
        return Ceilings("read", size / reading / 1e9, gemm)

    def _gemm(self, dtype: str, rounds: int) -> Gemm:
        rates = [
            Gemm(2 * m * n * k / _fastest(call, 2 * rounds) / 1e12, name)
            for m, n, k in GEMMS
            for name, call in self._products(m, n, k, dtype).items()
        ]
        return max(rates, key=lambda gemm: gemm.tflop_per_s)

    def _products(self, m: int, n: int, k: int, dtype: str) -> dict[str, Callable[[], object]]:
        x, weight = np.ones((m, k), np.float32), np.ones((n, k), np.float32)
        packed, out = ops.PackedWeight(weight, dtype=dtype), np.empty((m, n), np.float32)
        products: dict[str, Callable[[], object]] = {OURS: lambda: ops.linear(x, packed, out=out, pool=self._pool)}
        if (torch := self._torch) and dtype in ("float32", "bfloat16"):
            given = [torch.from_numpy(a).to(getattr(torch, dtype)) for a in (x, weight)]
            products["torch"] = lambda: torch.nn.functional.linear(*given)
        return products

    def copies(self, case: Case) -> int:
        """Return the number of operands for a cold measurement: one, as the caches are flushed before each call."""
        return 1

    def prepare(self, name: str, copies: Sequence[Operands], cache: str) -> Callable[[], float]:
        """Return a function that measures one round of a side: seconds of its median call."""
        call = copies[0].sides[name].call
        calls = int(min(max(CALL_TIME / seconds(call), 1), MOST_CALLS))
        return (lambda: self._cold(name, call, min(calls, 3))) if cache == "cold" else (lambda: _warm(call, calls))

    def _cold(self, name: str, call: Callable[[], object], calls: int) -> float:
        samples = []
        for _ in range(calls):
            self._read()
            self._wake(name)
            samples.append(seconds(call))
        return statistics.median(samples)

    def _read(self) -> None:
        """Read memory larger than the caches on all threads, so that nothing else is left in them."""
        for _ in self._readers.map(np.maximum.reduce, self._memory):
            pass

    def _wake(self, name: str) -> None:
        """Wake a side's threads by work too small to fill a cache: in a model they are awake too."""
        if name == OURS:
            ops.linear(self._few, self._packed, pool=self._pool)
        elif self._torch:
            self._torch.ones(1 << 16)


def _warm(call: Callable[[], object], calls: int) -> float:
    time.sleep(PAUSE)
    call()
    return statistics.median(seconds(call) for _ in range(calls))


def _fastest(call: Callable[[], object], times: int) -> float:
    return min(seconds(call) for _ in range(times + 2))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def last_level_caches(num_threads: int, system: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the bytes of the last-level caches of so many threads as Linux tells them; 32 MB where it does not.

    Processors of several dies have a cache on each, which only its own CPUs fill, and flush.
    """
    sizes: dict[str, int] = {}  # by the CPUs that share it
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        of_cpu = [(0, "")]
        for folder in system.glob(f"cpu{cpu}/cache/index*"):
            with contextlib.suppress(OSError):
                size = (folder / "size").read_text().strip()
                if size.endswith("K") and size[:-1].isdecimal():
                    of_cpu.append((int(size[:-1]) << 10, (folder / "shared_cpu_list").read_text().strip()))
        largest, shared = max(of_cpu)
        sizes[shared] = largest
    return sum(sorted(sizes.values(), reverse=True)[:num_threads]) or 32 << 20
