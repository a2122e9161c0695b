"""What a GPU benchmark ran on, and how it takes time. As a program: prints the GPU's name as a folder name."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from collections.abc import Callable

import torch

CACHE_BYTES = 256 << 20  # more than any L2
CALLS, ROUNDS = 20, 11


def gpu_facts() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "driver": subprocess.run(query, check=False, capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": os.environ.get("GITFAST_COMMIT", "unknown"),
    }


def graph_of(call: Callable[[int], object]) -> torch.cuda.CUDAGraph:
    """``CALLS`` calls in one graph; the argument counts them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            call(i)
    return graph


def microseconds(graph: torch.cuda.CUDAGraph, flush: torch.Tensor | None) -> float:
    """Per call. ``flush`` is overwritten first."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if flush is not None:
        flush.zero_()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / CALLS


def copy_bandwidth(flush: torch.Tensor) -> float:
    """GB/s of a large copy, read and written: the ceiling."""
    source = torch.empty_like(flush)
    graph = graph_of(lambda _: flush.copy_(source))
    return 2 * flush.nbytes / statistics.median(microseconds(graph, None) for _ in range(ROUNDS)) / 1000


if __name__ == "__main__":
    print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-"))
