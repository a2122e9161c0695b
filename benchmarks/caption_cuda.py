"""Times whole captions on a GPU beside transformers: pixels on the host in, token ids on the host out.

    python benchmarks/caption_cuda.py [--shape git-base] [--batch 1 8 64] [--rounds 9] [--json FILE]

All run the same random weights on the same pixels; none may end early. gitfast is given them as bytes, as its tasks
give them, transformers normalised; "float32 pixels" is gitfast with those; "layers" and "text" are ways to decode few
rows (docs/performance.md). Sides take turns within each round, ratios are taken round by round. "step" is what a token
more costs. Beside the speed stand the tokens equal to those of transformers in float32, up to the first that differs in
each caption: beyond it texts go ways of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from captioners import SHAPES, milliseconds, random_model

from gitfast.bench.machine import gpu_facts
from gitfast.config import GitConfig
from gitfast.engines.base import GenerationOptions, Normalization
from gitfast.engines.cuda import CudaEngine
from gitfast.image import CLIP_MEAN, CLIP_STD

NEW_TOKENS, BEAMS = 20, 4
ENGINES = {
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, int8 prefix": {"dtype": "bfloat16", "prefix_dtype": "int8"},
    "int8": {"dtype": "int8"},
    "float8": {"dtype": "float8"},
    "bfloat16, layers": {"dtype": "bfloat16", "decode": "layers"},
    "bfloat16, text": {"dtype": "bfloat16", "decode": "text"},
    "float8, text": {"dtype": "float8", "decode": "text"},
}
MOST_ROWS = 8  # of the ways of decoding that are for few
NORMALIZATION = Normalization(factor=1 / 255, mean=CLIP_MEAN, std=CLIP_STD)
Caption = Callable[[int], Sequence[Sequence[int]]]  # so many new tokens -> token ids of every image


def endless(config: transformers.GitConfig) -> transformers.GitForCausalLM:
    """The model of captioners.py, which never says that a text ends."""
    model = random_model(config)
    with torch.no_grad():
        model.output.bias[config.eos_token_id] = -1e4
    return model


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Bytes (B, H, W, 3) -> float32 (B, 3, H, W)."""
    scale, shift = (np.array(values, np.float32) for values in NORMALIZATION.affine())
    return np.ascontiguousarray((pixels * scale + shift).transpose(0, 3, 1, 2))


def of_transformers(model: transformers.GitForCausalLM, pixels: np.ndarray) -> Caption:
    device, dtype = model.output.weight.device, model.dtype

    @torch.inference_mode()
    def caption(new_tokens: int) -> list[list[int]]:
        given = torch.from_numpy(pixels).to(device, dtype)
        return model.generate(pixel_values=given, max_new_tokens=new_tokens, do_sample=False)[:, 1:].tolist()

    return caption


def of_gitfast(engine: CudaEngine, pixels: np.ndarray, beams: int = 1) -> Caption:
    prompts = [[engine.config.bos_token_id]] * len(pixels)

    def caption(new_tokens: int) -> list[list[int]]:
        options = GenerationOptions(max_new_tokens=new_tokens, num_beams=beams)
        return [item[0].token_ids for item in engine.generate(engine.encode(pixels), prompts, options)]

    return caption


def agreement(texts: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    """The share of tokens before the first difference of each text."""
    same = [
        next((i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b), len(other))
        for text, other in zip(texts, expected, strict=True)
    ]
    return sum(same) / sum(map(len, expected))


def measure(sides: dict[str, Caption], expected: Sequence[Sequence[int]], rounds: int) -> list[dict[str, object]]:
    """One row per side; the first is what the others are compared to."""
    texts = {name: caption(NEW_TOKENS) for name, caption in sides.items()}
    for caption in sides.values():
        caption(1)
        caption(NEW_TOKENS)  # plans that were made before are captured by now
    whole: dict[str, list[float]] = {name: [] for name in sides}
    first: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):  # captions end on the host: behind one nothing is left to wait for
        for name in sides if i % 2 else reversed(sides):
            first[name].append(milliseconds(lambda: sides[name](1)))  # noqa: B023
            whole[name].append(milliseconds(lambda: sides[name](NEW_TOKENS)))  # noqa: B023
    base = whole[next(iter(sides))]
    rows: list[dict[str, object]] = []
    for name in sides:
        middle, to_first = statistics.median(whole[name]), statistics.median(first[name])
        rows.append(
            {
                "engine": name,
                "caption_ms": middle,
                "fastest_ms": min(whole[name]),
                "first_token_ms": to_first,
                "step_us": (middle - to_first) / (NEW_TOKENS - 1) * 1e3,
                "captions_per_s": len(expected) / middle * 1e3,
                "speedup": statistics.median(a / b for a, b in zip(base, whole[name], strict=True)),
                "same_tokens": agreement(texts[name], expected),
            }
        )
    return rows


def run(shape: str, batches: Sequence[int], rounds: int, device: str) -> list[dict[str, object]]:
    """All engines at every batch size."""
    config = transformers.GitConfig(**SHAPES[shape])
    exact, half = endless(config).to(device), endless(config).to(device, torch.bfloat16)
    weights = {name: x.float().cpu().numpy() for name, x in exact.state_dict().items()}
    own = GitConfig.from_dict(config.to_dict())
    engines = {
        name: CudaEngine.from_weights(own, weights, device=device, normalization=NORMALIZATION, **options)
        for name, options in ENGINES.items()
    }
    results: list[dict[str, object]] = []
    for batch in batches:
        edge = own.vision_config.image_size
        given = np.random.default_rng(batch).integers(0, 256, (batch, edge, edge, 3), dtype=np.uint8)
        pixels = normalised(given)
        sides = {"transformers:bfloat16": of_transformers(half, pixels)}
        fit = [name for name in engines if batch <= MOST_ROWS or "decode" not in ENGINES[name]]
        sides |= {f"gitfast:{name}": of_gitfast(engines[name], given) for name in fit}
        sides["gitfast:bfloat16, float32 pixels"] = of_gitfast(engines["bfloat16"], pixels)
        if batch == 1:
            for name in [name for name in fit if name.startswith("bfloat16") and "prefix" not in name]:
                sides[f"gitfast:{name}, {BEAMS} beams"] = of_gitfast(engines[name], given, BEAMS)
        for row in measure(sides, of_transformers(exact, pixels)(NEW_TOKENS), rounds):
            results.append({"shape": shape, "batch": batch, **row})
            print(
                "{shape:15} {batch:5} {engine:32} {caption_ms:10.3f} {first_token_ms:10.3f} {step_us:9.1f}"
                " {captions_per_s:11.1f} {speedup:8.2f} {same_tokens:6.1%}".format(**results[-1]),
                flush=True,
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="git-base", choices=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    columns = ("caption ms", "first ms", "step us", "captions/s", "speedup", "same")
    print("{:15} {:5} {:32} {:>10} {:>10} {:>9} {:>11} {:>8} {:>6}".format("shape", "batch", "engine", *columns))
    results = run(arguments.shape, arguments.batch, arguments.rounds, "cuda")
    if arguments.json:
        report = {"gpu": gpu_facts(torch), "new_tokens": NEW_TOKENS, "rounds": arguments.rounds, "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
