"""Time captions of many lengths on a GPU: batch after batch, or with each row refilled when its text ends.

    python benchmarks/refill_cuda.py [--model git-base] [--images 256] [--rows 64] [--new-tokens 50] [--json FILE]

Random weights, told to end a text with a probability of a tenth at each token: samples, whose keys depend on their
prompts, so every image has a prompt of its own. Images are encoded before. Both sides give the same tokens, to the bit;
sides take turns within each round, and ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from gitfast.bench.caption import milliseconds
from gitfast.bench.machine import gpu_facts
from gitfast.bench.report import check_writable
from gitfast.bench.spread import Spread, in_turns
from gitfast.bench.workload import RandomWeights, random_pixels
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.published import SHAPES
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.types import Generation, GenerationOptions

END = 0.1  # the probability that a text ends at a token


class EndingWeights(RandomWeights):
    """Weights under which all tokens are about as likely, but the end."""

    def __init__(self, config: GitConfig) -> None:
        super().__init__(config)
        self._config = config

    def __getitem__(self, name: str) -> np.ndarray:
        values = super().__getitem__(name)
        if name == "output.weight":
            values /= 100
        if name == "output.bias":
            values[self._config.eos_token_id] = math.log(END / (1 - END) * self._config.vocab_size)
        return values


def run(config: GitConfig, images: int, rows: int, rounds: int, device: str, new_tokens: int = 50) -> dict[str, object]:
    """Run both ways over the same prefixes."""
    engine = CudaEngine.from_weights(config, EndingWeights(config), device=device, rows_at_once=rows)
    prefixes = engine.encode(random_pixels(config, images).normalised)
    prompts = [[config.bos_token_id, 10 + i % (config.vocab_size - 10)] for i in range(images)]
    options = GenerationOptions(max_new_tokens=new_tokens, do_sample=True, seed=1)

    def refilled() -> list[list[Generation]]:
        return engine.generate(prefixes, prompts, options)

    parts = [slice(first, first + rows) for first in range(0, images, rows)]

    def in_parts() -> list[list[Generation]]:
        return [found for part in parts for found in engine.generate(prefixes[part], prompts[part], options)]

    sides, steps, times = {"refilled": refilled, "in parts": in_parts}, {}, {}
    texts = {name: side() for name, side in sides.items()}
    for name, side in sides.items():
        before = engine.stats.decode_steps
        side()  # steps are captured by now
        calls = len(parts) if side is in_parts else 1  # whose first steps are counted with the prompts
        steps[name], times[name] = engine.stats.decode_steps - before + calls, []
    for name in in_turns(sides, rounds):
        times[name].append(milliseconds(sides[name]))
    lengths = [len(item[0].token_ids) for item in texts["refilled"]]
    return {
        "images": images,
        "rows": rows,
        "new_tokens": {"mean": statistics.mean(lengths), "longest": max(lengths)},
        "steps": steps,
        "ms": {name: statistics.median(all_times) for name, all_times in times.items()},
        "speedup": Spread.of_ratios(times["in parts"], times["refilled"]).median,
        "same": texts["refilled"] == texts["in parts"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="git-base", choices=SHAPES)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=50, help="of the longest text (default: 50)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda", help="cpu for emulated kernels")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    if arguments.json:
        check_writable("json", arguments.json)
    sizes = arguments.images, arguments.rows, arguments.rounds
    result = run(SHAPES[arguments.model], *sizes, arguments.device, arguments.new_tokens)
    print(json.dumps(result, indent=1))
    if arguments.json:
        report = {"gpu": gpu_facts(torch), "model": arguments.model, "rounds": arguments.rounds, **result}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
