"""Times what one more beam, image or question costs, and a decode step beside a loop that only reads memory.

    python benchmarks/decode.py [--model git-base] [--dtype float32 ...] [--rounds 9] [--threads N] [--json FILE]

The CPU engine with random weights. A step must read the matrices of the decoder and its head, and the prefix; the loop
reads as many bytes. Works take turns within each round, and ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from stream import Stream

from gitfast import _C
from gitfast.bench.caption import PAUSE_S, milliseconds
from gitfast.bench.captioners import EngineCaptioner
from gitfast.bench.machine import machine_facts
from gitfast.bench.report import check_writable
from gitfast.bench.spread import Spread, in_turns
from gitfast.bench.workload import Workload, open_workload, random_pixels
from gitfast.engines.cpu import CpuEngine

DTYPES, NEW_TOKENS = ("float32", "bfloat16", "int8"), 20


def step_bytes(engine: CpuEngine, prefix_bytes: int) -> int:
    """Bytes that one step of one row must read."""
    c = engine.config
    layer = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
    weights = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
    return weights * {"float32": 4, "bfloat16": 2, "int8": 1}[engine.dtype] + prefix_bytes


def measure(workload: Workload, dtype: str, threads: int, rounds: int, new_tokens: int) -> dict[str, object]:
    engine, staged = (
        CpuEngine.from_weights(
            workload.config, workload.weights, dtype=dtype, num_threads=threads, two_stage_head=two_stages
        )
        for two_stages in (False, True)
    )
    captioner, two_stage = EngineCaptioner(engine, workload), EngineCaptioner(staged, workload)
    pixels = random_pixels(workload.config, 1)
    one = engine.encode(pixels.normalised)
    eight = [engine.encode(pixels.normalised)[0] for _ in range(8)]
    staged_one = staged.encode(pixels.normalised)
    num_bytes = step_bytes(engine, one[0].nbytes)
    stream = Stream(num_bytes, threads)
    works: dict[str, Callable[[], object]] = {
        "first_step": lambda: captioner.decode(one, 1),
        "decode": lambda: captioner.decode(one, new_tokens),
        "two_stage": lambda: two_stage.decode(staged_one, new_tokens),
        "eight_first_step": lambda: captioner.decode(eight, 1),
        "eight": lambda: captioner.decode(eight, new_tokens),
        "caption": lambda: captioner.caption(pixels, new_tokens),
        "beam4": lambda: captioner.caption(pixels, new_tokens, num_beams=4),
        "stream": lambda: stream.read(new_tokens - 1),
    }
    samples: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for name in in_turns(works, rounds):
        time.sleep(PAUSE_S)
        samples[name].append(milliseconds(works[name]))
    stream.close()
    steps, steps8 = (
        [all_ - first for all_, first in zip(samples[a], samples[b], strict=True)]
        for a, b in (("decode", "first_step"), ("eight", "eight_first_step"))
    )
    ratios = {
        "step / loop": (steps, samples["stream"]),
        "4 beams / greedy": (samples["beam4"], samples["caption"]),
        "8 images / 1, decode": (steps8, steps),
        "next question / caption": (samples["decode"], samples["caption"]),
        "two-stage head / full, decode": (samples["two_stage"], samples["decode"]),
    }
    return {
        "dtype": dtype,
        "step_bytes": num_bytes,
        "weight_mb": engine.nbytes / 1e6,
        "step_ms": Spread.of(steps).median / (new_tokens - 1),
        "stream_ms": Spread.of(samples["stream"]).median / (new_tokens - 1),
        "ratios": {name: asdict(Spread.of_ratios(*pair)) for name, pair in ratios.items()},
        "samples_ms": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="git-base")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--threads", type=int, default=0, help="default: the CPUs this process may use")
    parser.add_argument("--json", type=Path, help="also write the results, with every sample, to this file")
    arguments = parser.parse_args()
    if arguments.json:
        check_writable("json", arguments.json)
    threads, workload = _C.choose_num_threads(arguments.threads), open_workload(arguments.model)
    machine = machine_facts("numpy") | {"threads": threads}
    print(f"{workload.name}, {threads} threads of {machine['cpu']}, medians of {arguments.rounds} rounds")
    results = []
    for dtype in arguments.dtype:
        row = measure(workload, dtype, threads, arguments.rounds, arguments.new_tokens)
        results.append(row)
        print("{dtype}: weights {weight_mb:.1f} MB, step {step_ms:.3f} ms, loop {stream_ms:.3f} ms".format(**row))
        for name, ratio in row["ratios"].items():  # type: ignore[attr-defined]
            print(f"  {name}: {ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})", flush=True)
        if arguments.json:
            report = {"benchmark": "decode", "machine": machine, "model": workload.name, "results": results}
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
