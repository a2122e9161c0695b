"""Times residual + bias + LayerNorm on a GPU beside torch, in one run: ``python benchmarks/norm_cuda.py --json FILE``.

Each result is checked against float64 before it is timed. All sides run inside CUDA graphs, in turns, so that no launch
from Python is timed. "Cold": every call has memory of its own, and the caches are overwritten before each round;
"warm": all calls have the same. Figures are medians of the rounds, with the fastest and the slowest beside them in the
JSON. GB/s counts every byte that must move once; its share is of what a large copy reaches in the same run.

Beside it run torch's operators for the same work (two additions and layer_norm), what torch.compile makes of them, and
torch's layer_norm alone, which reads one tensor less and does less.
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
from gpu import CACHE_BYTES, CALLS, ROUNDS, copy_bandwidth, gpu_facts, graph_of, microseconds

from gitfast import _C

EPS = 1e-5
SHAPES = [(1, 768), (5, 768), (197, 768), (12_608, 768), (1, 1024), (257, 1024), (16_448, 1024)]


def plain(
    x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    return F.layer_norm(x + bias + residual, x.shape[-1:], gamma, beta, EPS)


compiled = torch.compile(plain, dynamic=True)


def compiled_problem() -> str | None:
    """Why torch.compile does not run here."""
    try:
        compiled(*(torch.ones(*shape, device="cuda") for shape in ((2, 8), (8,), (2, 8), (8,), (8,))))
    except Exception as error:  # whatever its compiler throws: the other peers are measured all the same
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def measure(
    rows: int, width: int, dtype: torch.dtype, flush: torch.Tensor | None, peers: set[str]
) -> dict[str, object]:
    copies = 1 if flush is None else CALLS
    x, residual, out = (torch.randn(copies, rows, width, device="cuda").to(dtype) for _ in range(3))
    bias, gamma, beta = (torch.randn(width, device="cuda").to(dtype) for _ in range(3))

    def ours(i: int) -> None:
        stream, n = torch.cuda.current_stream().cuda_stream, i % copies
        _C.cuda.add_layer_norm(x[n], bias, residual[n], gamma, beta, EPS, out[n], stream)

    calls: dict[str, Callable[[int], object]] = {
        "gitfast": ours,
        "torch": lambda i: plain(x[i % copies], bias, residual[i % copies], gamma, beta),
        "torch.compile": lambda i: compiled(x[i % copies], bias, residual[i % copies], gamma, beta),
        "layer_norm alone": lambda i: F.layer_norm(x[i % copies], (width,), gamma, beta, EPS),
    }
    ours(0)
    truth = plain(*(t.double() for t in (x[0], bias, residual[0], gamma, beta)))
    rounding = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}[dtype]
    allowed = rounding * truth.abs() + 2e-6 * truth.abs().max()
    error = ((out[0].double() - truth).abs() / allowed).max().item()
    if not error <= 1:
        sys.exit(f"({rows}, {width}) {dtype}: {error} times the tolerance")
    graphs = {name: graph_of(call) for name, call in calls.items() if name in peers}
    rounds = [{name: microseconds(graph, flush) for name, graph in graphs.items()} for _ in range(ROUNDS)]
    times = {name: [r[name] for r in rounds] for name in graphs}
    ours_median = statistics.median(times["gitfast"])
    return {
        "rows": rows,
        "width": width,
        "dtype": str(dtype).removeprefix("torch."),
        "cache": "warm" if flush is None else "cold",
        "error": error,
        "microseconds": {name: statistics.median(t) for name, t in times.items()},
        "fastest": {name: min(t) for name, t in times.items()},
        "slowest": {name: max(t) for name, t in times.items()},
        "speedup": {name: statistics.median(r[name] / r["gitfast"] for r in rounds) for name in graphs},
        "gb_per_s": 3 * rows * width * dtype.itemsize / ours_median / 1000,  # x and residual read, out written
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    flush = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    ceiling = copy_bandwidth(flush)
    peers = {"gitfast", "torch", "torch.compile", "layer_norm alone"}
    if problem := compiled_problem():
        print(f"torch.compile is not measured: {problem}")
        peers.remove("torch.compile")
    print(f"copy: {ceiling:.0f} GB/s\n  rows width dtype    cache        us   GB/s  share  speedup over")
    results = []
    for rows, width in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            for memory in (flush, None):
                r = measure(rows, width, dtype, memory, peers)
                results.append(r | {"share_of_copy": r["gb_per_s"] / ceiling})
                speedup = ", ".join(f"{name} {s:.2f}" for name, s in r["speedup"].items() if name != "gitfast")
                print(
                    f"{rows:6} {width:5} {r['dtype']:8} {r['cache']}  {r['microseconds']['gitfast']:8.2f}"
                    f"  {r['gb_per_s']:5.0f}  {r['gb_per_s'] / ceiling:5.2f}  {speedup}",
                    flush=True,
                )
    report = {
        "gpu": gpu_facts(),
        "copy_gb_per_s": ceiling,
        "not_measured": {"torch.compile": problem} if problem else {},
    }
    arguments.json.write_text(json.dumps(report | {"results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
