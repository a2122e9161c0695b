"""Times captions of many lengths on a GPU: as many as are decoded at once after another, or one by one refilled.

    python benchmarks/refill_cuda.py [--shape git-base] [--images 256] [--rows 64] [--rounds 7] [--json FILE]

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
import transformers
from captioners import SHAPES, milliseconds, random_model

from gitfast.bench.machine import gpu_facts
from gitfast.checkpoints.config import GitConfig
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.types import Generation, GenerationOptions

LONGEST, END = 50, 0.1  # new tokens; the probability that a text ends at one


def ending_model(config: transformers.GitConfig) -> transformers.GitForCausalLM:
    """The model of captioners.py, for which all tokens are about as likely, but the end."""
    model = random_model(config)
    with torch.no_grad():
        model.output.weight /= 100
        model.output.bias[config.eos_token_id] = math.log(END / (1 - END) * config.vocab_size)
    return model


def run(shape: str, images: int, rows: int, rounds: int, device: str) -> dict[str, object]:
    """Both ways, over the same prefixes."""
    config = transformers.GitConfig(**SHAPES[shape])
    weights = {name: x.float().numpy() for name, x in ending_model(config).state_dict().items()}
    own = GitConfig.from_dict(config.to_dict())
    engine = CudaEngine.from_weights(own, weights, device=device, rows_at_once=rows)
    pixels = np.random.default_rng(0).standard_normal((images, 3, *[own.vision_config.image_size] * 2), np.float32)
    prefixes = engine.encode(pixels)
    prompts = [[own.bos_token_id, 10 + i % (own.vocab_size - 10)] for i in range(images)]
    options = GenerationOptions(max_new_tokens=LONGEST, do_sample=True, seed=1)

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
    for i in range(rounds):
        for name in sides if i % 2 else reversed(sides):
            times[name].append(milliseconds(sides[name]))
    lengths = [len(item[0].token_ids) for item in texts["refilled"]]
    ratios = [a / b for a, b in zip(times["in parts"], times["refilled"], strict=True)]
    return {
        "shape": shape,
        "images": images,
        "rows": rows,
        "new_tokens": {"mean": statistics.mean(lengths), "longest": max(lengths)},
        "steps": steps,
        "ms": {name: statistics.median(all_times) for name, all_times in times.items()},
        "speedup": statistics.median(ratios),
        "same": texts["refilled"] == texts["in parts"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="git-base", choices=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    result = run(arguments.shape, arguments.images, arguments.rows, arguments.rounds, "cuda")
    print(json.dumps(result, indent=1))
    if arguments.json:
        report = {"gpu": gpu_facts(torch), "rounds": arguments.rounds, **result}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
