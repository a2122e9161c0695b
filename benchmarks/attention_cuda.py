"""Times attention over a shared prefix on a GPU beside torch: ``python benchmarks/attention_cuda.py --json FILE``.

Each result is checked against float64 before it is timed; sides take turns inside CUDA graphs (benchmarks/gpu.py).
Images attend to themselves in one case, in the other one token per row over its image's prefix and ten tokens of its
own, as in decoding with beams. Beside it run torch's scaled_dot_product_attention on keys and values copied for every
row (the copying is not timed) and plain matrix products with a softmax; for one image also the prefix split over
several blocks. GB/s counts every key and value of a prefix once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu import CACHE_BYTES, CALLS, ROUNDS, copy_bandwidth, gpu_facts, graph_of, microseconds

from gitfast import _C

HEADS, HEAD_DIM, TEXT = 12, 64, 10
IMAGES = [(images, prefix) for prefix in (197, 901) for images in (1, 8, 64)]
SPLITS = (2, 4, 8)
DECODE = [(images, rows, prefix) for prefix in (197, 901) for images in (1, 64) for rows in (1, 5)]

Call = Callable[[int], object]


def matmul_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return ((q @ k.transpose(-1, -2)) * HEAD_DIM**-0.5).softmax(-1) @ v


def tile_list(images: int, rows: int, tile_rows: int) -> torch.Tensor:
    tiles = [
        (image * rows + first, min(tile_rows, rows - first), image)
        for image in range(images)
        for first in range(0, rows, tile_rows)
    ]
    return torch.tensor(tiles, dtype=torch.int32, device="cuda")


def measure(images: int, rows: int, prefix: int, text: int, flush: torch.Tensor | None) -> dict[str, object]:
    """``rows`` per image, each with ``text`` tokens of its own."""
    copies, total, tile_rows = 1 if flush is None else CALLS, images * rows, 64 if rows > 16 else 16
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    q, out = (torch.randn(copies, total, HEADS, HEAD_DIM, **kind) for _ in range(2))
    k, v = (torch.randn(copies, images, HEADS, prefix, HEAD_DIM, **kind) for _ in range(2))
    k_text, v_text = (torch.randn(total * max(text, 1), HEADS, HEAD_DIM, **kind) for _ in range(2))
    slots = torch.randperm(total * max(text, 1), device="cuda").int().view(total, -1)
    lengths = torch.full((total,), text, dtype=torch.int32, device="cuda")
    tiles = tile_list(images, rows, tile_rows)
    arguments = (k_text, v_text, slots, lengths) if text else (None,) * 4
    parts = SPLITS if text and images == 1 else ()
    floats = _C.cuda.attention_workspace(total, len(tiles), HEADS, HEAD_DIM, SPLITS[-1]) if parts else 0
    workspace = torch.zeros(floats, device="cuda")

    def ours(i: int, splits: int = 1) -> None:
        stream, n = torch.cuda.current_stream().cuda_stream, i % copies
        _C.cuda.prefix_attention(
            *(q[n], tiles, k[n], v[n], *arguments, None, None, HEAD_DIM**-0.5, tile_rows, out[n]),
            splits=splits,
            workspace=workspace,
            stream=stream,
        )

    # For torch: (sequences, H, rows, head_dim). Rows with text of their own are sequences of their own.
    def for_torch(n: int) -> tuple[torch.Tensor, ...]:
        if not text:
            return q[n].view(images, rows, HEADS, HEAD_DIM).transpose(1, 2).contiguous(), k[n], v[n]
        own = (x[slots.long()].transpose(1, 2) for x in (k_text, v_text))
        both = [torch.cat([x[n].repeat_interleave(rows, 0), y], 2) for x, y in zip((k, v), own, strict=True)]
        return q[n][:, :, None], *both

    given = [for_torch(n) for n in range(copies)]
    calls: dict[str, Call] = {
        "gitfast": ours,
        **{f"{splits} parts": partial(ours, splits=splits) for splits in parts},
        "sdpa": lambda i: F.scaled_dot_product_attention(*given[i % copies]),
        "matmul + softmax": lambda i: matmul_softmax(*given[i % copies]),
    }
    truth = matmul_softmax(*(x.double() for x in given[0])).transpose(1, 2).reshape(total, HEADS, HEAD_DIM)
    for splits in (*parts, 1):
        ours(0, splits)
        error = ((out[0].double() - truth).abs() / (2.0**-8 * (truth.abs() + v[0].abs().max().double()))).max().item()
        if not error <= 1:
            sys.exit(f"{images} images, {rows} rows, prefix {prefix} in {splits} parts: {error} times the tolerance")
    graphs = {name: graph_of(call) for name, call in calls.items()}
    rounds = [{name: microseconds(graph, flush) for name, graph in graphs.items()} for _ in range(ROUNDS)]
    median = {name: statistics.median(r[name] for r in rounds) for name in graphs}
    moved = 2 * (images * prefix + total * text) * HEADS * HEAD_DIM * 2 + 2 * total * HEADS * HEAD_DIM * 2
    flops = 4 * total * (prefix + text) * HEADS * HEAD_DIM
    return {
        "images": images,
        "rows_per_image": rows,
        "prefix": prefix,
        "text": text,
        "cache": "warm" if flush is None else "cold",
        "error": error,
        "microseconds": median,
        "fastest": {name: min(r[name] for r in rounds) for name in graphs},
        "slowest": {name: max(r[name] for r in rounds) for name in graphs},
        "speedup": {name: statistics.median(r[name] / r["gitfast"] for r in rounds) for name in graphs},
        "gb_per_s": moved / median["gitfast"] / 1000,
        "tflop_per_s": flops / median["gitfast"] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    flush = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    ceiling = copy_bandwidth(flush)
    print(f"copy: {ceiling:.0f} GB/s\nimages  rows prefix text cache        us   GB/s  TFLOP/s  speedup over")
    results = []
    cases = [(images, prefix, prefix, 0) for images, prefix in IMAGES]
    cases += [(images, rows, prefix, TEXT) for images, rows, prefix in DECODE]
    for case in cases:
        for memory in (flush, None):
            if memory is not None and case[0] * case[2] > 20_000:
                continue  # copies of everything for every call would not fit, and nothing stays in the caches anyway
            r = measure(*case, memory)
            results.append(r | {"share_of_copy": r["gb_per_s"] / ceiling})
            speedup = ", ".join(f"{name} {s:.2f}" for name, s in r["speedup"].items() if name != "gitfast")
            print(
                f"{case[0]:6} {case[1]:5} {case[2]:6} {case[3]:4} {r['cache']}  {r['microseconds']['gitfast']:8.2f}"
                f"  {r['gb_per_s']:5.0f}  {r['tflop_per_s']:7.1f}  {speedup}",
                flush=True,
            )
    report = {"gpu": gpu_facts(), "copy_gb_per_s": ceiling, "results": results}
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
