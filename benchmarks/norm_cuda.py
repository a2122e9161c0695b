"""Times residual + bias + LayerNorm on a GPU beside torch, in one run: ``python benchmarks/norm_cuda.py --json FILE``.

Each result is checked against float64 before it is timed. Inputs rotate over more memory than the L2 cache holds
("cold"), or stay the same ("warm"). Both sides run inside CUDA graphs, so that no launch from Python is timed; the
figure is the median of the rounds, and GB/s counts every byte that must move once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu import gpu_facts

from gitfast import _C

COLD_BYTES = 256 << 20
CALLS, ROUNDS = 20, 11
SHAPES = [(1, 768), (5, 768), (197, 768), (12_608, 768), (1, 1024), (257, 1024), (16_448, 1024)]


def graph_of(call: Callable[[int], None]) -> torch.cuda.CUDAGraph:
    """``CALLS`` calls in one graph; the argument counts them."""
    for i in range(3):
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            call(i)
    return graph


def microseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / CALLS


def measure(rows: int, width: int, dtype: torch.dtype, cold: bool) -> dict[str, object]:
    nbytes = 3 * rows * width * dtype.itemsize  # x and residual read, out written
    copies = min(CALLS, 1 + COLD_BYTES // nbytes) if cold else 1
    x, residual, out = (torch.randn(copies, rows, width, device="cuda").to(dtype) for _ in range(3))
    bias, gamma, beta = (torch.randn(width, device="cuda").to(dtype) for _ in range(3))

    def ours(i: int) -> None:
        stream, n = torch.cuda.current_stream().cuda_stream, i % copies
        _C.cuda.add_layer_norm(x[n], bias, residual[n], gamma, beta, 1e-5, out[n], stream)

    def torch_eager(i: int) -> None:
        n = i % copies
        out[n].copy_(F.layer_norm(x[n] + bias + residual[n], (width,), gamma, beta, 1e-5))

    ours(0)
    truth = F.layer_norm((x[0].double() + bias + residual[0]), (width,), gamma.double(), beta.double(), 1e-5)
    error = (out[0].double() - truth).abs().max().item()
    if not error < 0.1:
        sys.exit(f"({rows}, {width}) {dtype}: wrong by {error}")
    graphs = {"gitfast": graph_of(ours), "torch": graph_of(torch_eager)}
    rounds = [{name: microseconds(graph) for name, graph in graphs.items()} for _ in range(ROUNDS)]
    times = {name: statistics.median(r[name] for r in rounds) for name in graphs}
    return {
        "rows": rows,
        "width": width,
        "dtype": str(dtype).removeprefix("torch."),
        "cache": "cold" if cold else "warm",
        "error": error,
        "microseconds": times,
        "ratio": statistics.median(r["torch"] / r["gitfast"] for r in rounds),
        "gb_per_s": nbytes / times["gitfast"] / 1000,
    }


def copy_bandwidth() -> float:
    """GB/s of a large copy, read and written: the ceiling."""
    a = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    graph = graph_of(lambda _: b.copy_(a))
    return 2 * COLD_BYTES / statistics.median(microseconds(graph) for _ in range(ROUNDS)) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    ceiling = copy_bandwidth()
    print(f"copy: {ceiling:.0f} GB/s\n  rows width dtype    cache  gitfast us  torch us  ratio  GB/s")
    results = []
    for rows, width in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            for cold in (True, False):
                r = measure(rows, width, dtype, cold)
                results.append(r)
                times = r["microseconds"]
                print(
                    f"{rows:6} {width:5} {r['dtype']:8} {r['cache']}  {times['gitfast']:10.2f}  {times['torch']:8.2f}"
                    f"  {r['ratio']:5.2f}  {r['gb_per_s']:.0f}",
                    flush=True,
                )
    report = {"gpu": gpu_facts(), "copy_gb_per_s": ceiling, "results": results}
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
