"""Times the CPU kernels beside torch in float32, on the same threads, in alternation.

    python benchmarks/kernels_cpu.py [--threads 2] [--rounds 9] [--isa avx512] [--json kernels.json]

Each round gives either side a pause (threads of the other side stop spinning), one call to warm up and a few timed
calls. The table shows medians over all rounds; the ratio is torch's time over ours, its median taken round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from gitfast import ops


@dataclass(frozen=True)
class Case:
    """One kernel at one shape, ours and torch's, and what it computes or reads."""

    name: str
    shape: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    flops: float
    bytes: float


@dataclass(frozen=True)
class Row:
    """Medians of one case."""

    name: str
    shape: str
    ours_us: float
    torch_us: float
    ratio: float
    gflops: float
    gbytes_per_s: float


def linear_case(m: int, n: int, k: int, activation: str, isa: str, pool: ops.ThreadPool) -> Case:
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    packed, out = ops.PackedWeight(weight, bias), np.empty((m, n), np.float32)
    after = {"none": lambda y: y, "gelu": F.gelu, "quick_gelu": lambda y: y * torch.sigmoid(1.702 * y)}[activation]
    return Case(
        "linear" if activation == "none" else f"linear, {activation}",
        f"{m} x {n} x {k}",
        partial(ops.linear, x.numpy(), packed, activation=activation, out=out, isa=isa, pool=pool),
        lambda: after(F.linear(x, weight, bias)),
        flops=2.0 * m * n * k,
        bytes=4.0 * (n * k + m * k + m * n),
    )


def attention_case(rows: int, prefix: int, heads: int, isa: str, pool: ops.ThreadPool) -> Case:
    head_dim = 64
    q, k, v = torch.randn(rows, heads, head_dim), *torch.randn(2, heads, prefix, head_dim)
    by_head, out = q.transpose(0, 1).contiguous(), np.empty((rows, heads, head_dim), np.float32)
    return Case(
        "attention",
        f"{rows} rows over {prefix}, {heads} heads",
        partial(ops.prefix_attention, q.numpy(), ops.PackedPrefix(k, v), out=out, isa=isa, pool=pool),
        lambda: F.scaled_dot_product_attention(by_head[None], k[None], v[None]),
        flops=4.0 * rows * prefix * heads * head_dim,
        bytes=8.0 * prefix * heads * head_dim,
    )


def layer_norm_case(rows: int, d: int, isa: str, pool: ops.ThreadPool) -> Case:
    x, gamma, beta = torch.randn(rows, d), torch.randn(d), torch.randn(d)
    out = np.empty((rows, d), np.float32)
    return Case(
        "layer_norm",
        f"{rows} x {d}",
        partial(ops.layer_norm, x.numpy(), gamma.numpy(), beta.numpy(), out=out, isa=isa, pool=pool),
        lambda: F.layer_norm(x, (d,), gamma, beta),
        flops=8.0 * rows * d,
        bytes=8.0 * rows * d,
    )


def all_cases(isa: str, pool: ops.ThreadPool) -> list[Case]:
    """The shapes of git-base: vision and prefill (197 rows), then decode with one row, beams, and the head."""
    linear = partial(linear_case, isa=isa, pool=pool)
    return [
        linear(197, 768, 768, "none"),
        linear(197, 2304, 768, "none"),
        linear(197, 768, 3072, "none"),
        linear(197, 3072, 768, "quick_gelu"),
        linear(197, 3072, 768, "gelu"),
        linear(1, 2304, 768, "none"),
        linear(1, 768, 768, "none"),
        linear(1, 3072, 768, "gelu"),
        linear(1, 768, 3072, "none"),
        linear(1, 30522, 768, "none"),
        linear(4, 30522, 768, "none"),
        linear(8, 30522, 768, "none"),
        linear(257, 1024, 4096, "none"),
        attention_case(197, 197, 12, isa, pool),
        attention_case(1542, 1542, 12, isa, pool),
        attention_case(1, 197, 12, isa, pool),
        attention_case(5, 1542, 12, isa, pool),
        layer_norm_case(197, 768, isa, pool),
    ]


def time_calls(run: Callable[[], object], calls: int) -> float:
    """Seconds of the median call, after a pause and one call to warm up."""
    time.sleep(0.02)
    run()
    samples = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def measure(case: Case, rounds: int, calls: int) -> Row:
    """Alternates the two sides, starting with each in turn."""
    ours, theirs = [], []
    for i in range(rounds):
        order = [(case.ours, ours), (case.theirs, theirs)]
        for run, times in order if i % 2 else order[::-1]:
            times.append(time_calls(run, calls))
    seconds = statistics.median(ours)
    return Row(
        case.name,
        case.shape,
        ours_us=seconds * 1e6,
        torch_us=statistics.median(theirs) * 1e6,
        ratio=statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        gflops=case.flops / seconds / 1e9,
        gbytes_per_s=case.bytes / seconds / 1e9,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--isa", default="")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    isa = ops.choose_isa(options.isa)
    print(f"{isa}, {options.threads} threads, torch {torch.__version__}, median of {options.rounds} rounds")
    print(f"{'kernel':<20} {'shape':<28} {'ours us':>10} {'torch us':>10} {'ratio':>6} {'GFLOP/s':>8} {'GB/s':>6}")
    rows = []
    with torch.inference_mode():
        for case in all_cases(isa, ops.ThreadPool(options.threads)):
            row = measure(case, options.rounds, options.calls)
            rows.append(row)
            print(
                f"{row.name:<20} {row.shape:<28} {row.ours_us:10.1f} {row.torch_us:10.1f} {row.ratio:6.2f}"
                f" {row.gflops:8.1f} {row.gbytes_per_s:6.1f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"isa": isa, "threads": options.threads, "rows": [asdict(row) for row in rows]}, file, indent=1)


if __name__ == "__main__":
    main()
