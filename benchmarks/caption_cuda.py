"""Times whole captions on a GPU beside transformers: pixels on the host in, token ids on the host out.

    python benchmarks/caption_cuda.py [--shape git-base ...] [--batch 1 8 64] [--rounds 9] [--compiled] [--json FILE]

All run the same random weights on the same pixels; none may end early. gitfast is given them as bytes, as its tasks
give them, transformers and the reference engine normalised; "float32 pixels" is gitfast with those; "persistent"
is a way to decode few rows (docs/performance.md). Sides take turns within each round, ratios are taken round by round.
"step" is what a token more costs, "floor" what a caption costs at least at the rates of this device, measured in the
same run (floors.py). Beside the speed stand the tokens equal to those of the reference engine in float32, up to the
first that differs in each caption: beyond it texts go ways of their own. Of clips, transformers' differ: it adds the
temporal embeddings elsewhere. What was measured so far is in FILE whenever a run is stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import floors
import numpy as np
import torch
import transformers
from captioners import SHAPES, milliseconds, random_model

from gitfast.bench.ceilings import Ceilings
from gitfast.bench.cuda_clock import CudaClock
from gitfast.bench.machine import gpu_facts
from gitfast.checkpoints.config import GitConfig
from gitfast.engines.base import Engine
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.engines.reference import ReferenceEngine
from gitfast.inputs.image import CLIP_MEAN, CLIP_STD
from gitfast.types import GenerationOptions, Normalization

NEW_TOKENS, BEAMS, BOS = 20, 4, GitConfig().bos_token_id
ENGINES = {
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, int8 prefix": {"dtype": "bfloat16", "prefix_dtype": "int8"},
    "int8": {"dtype": "int8"},
    "float8": {"dtype": "float8"},
    "bfloat16, persistent": {"dtype": "bfloat16", "decode": "persistent"},
    "float8, persistent": {"dtype": "float8", "decode": "persistent"},
}
MOST_ROWS = 8  # of the ways of decoding that are for few
BATCHES = {"git-base": [1, 8, 64]}  # of the other shapes: 1
NORMALIZATION = Normalization(factor=1 / 255, mean=CLIP_MEAN, std=CLIP_STD)
Caption = Callable[[int], Sequence[Sequence[int]]]  # so many new tokens -> token ids of every image


def endless(config: transformers.GitConfig) -> transformers.GitForCausalLM:
    """The model of captioners.py, which never says that a text ends."""
    model = random_model(config)
    with torch.no_grad():
        model.output.bias[config.eos_token_id] = -1e4
    return model


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Bytes (B, H, W, 3) or (B, T, H, W, 3) -> float32 (B, 3, H, W) or (B, T, 3, H, W)."""
    scale, shift = (np.array(values, np.float32) for values in NORMALIZATION.affine())
    return np.ascontiguousarray(np.moveaxis(pixels * scale + shift, -1, -3))


def of_transformers(model: transformers.GitForCausalLM, pixels: np.ndarray, **options: object) -> Caption:
    device, dtype = model.output.weight.device, model.dtype

    @torch.inference_mode()
    def caption(new_tokens: int) -> list[list[int]]:
        given = torch.from_numpy(pixels).to(device, dtype)
        texts = model.generate(pixel_values=given, max_new_tokens=new_tokens, do_sample=False, **options)
        return texts[:, 1:].tolist()

    return caption


def of_compiled(config: transformers.GitConfig, pixels: np.ndarray, device: str) -> Caption | None:
    """None, and a word about it, where transformers cannot."""
    model = endless(config).to(device, torch.bfloat16)
    model.forward = torch.compile(model.forward, mode="reduce-overhead")
    caption = of_transformers(model, pixels, cache_implementation="static")
    try:
        caption(NEW_TOKENS)
    except Exception as error:  # whatever it is made of
        print(f"transformers compiled with a static cache: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return caption


def of_gitfast(engine: Engine, pixels: np.ndarray, beams: int = 1) -> Caption:
    prompts = [[BOS]] * len(pixels)

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


def floor(config: GitConfig, batch: int, engine: dict[str, str], ceilings: Ceilings) -> float:
    """Seconds of a caption at least, by how an engine stores weights and prefixes."""
    weight_bytes = 1 if engine.get("dtype") in ("int8", "float8") else 2
    step = floors.step(config, batch, weight_bytes, 1 if engine.get("prefix_dtype") == "int8" else 2)
    return floors.encode(config, batch).seconds(ceilings) + NEW_TOKENS * step.seconds(ceilings)


def run(
    shape: str, batches: Sequence[int], rounds: int, device: str, ceilings: Ceilings, *, compiled: bool = False
) -> Iterator[dict[str, object]]:
    """All engines at every batch size."""
    config = transformers.GitConfig(**SHAPES[shape])
    model = endless(config)
    weights = {name: x.numpy() for name, x in model.state_dict().items()}
    half = model.to(device, torch.bfloat16)
    own = GitConfig.from_dict(config.to_dict())
    exact, reference = (
        ReferenceEngine.from_weights(own, weights, device=device, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    engines = {
        name: CudaEngine.from_weights(own, weights, device=device, normalization=NORMALIZATION, **options)
        for name, options in ENGINES.items()
    }
    for batch in batches:
        edge, frames = own.vision_config.image_size, own.num_image_with_embedding
        size = (batch, *([frames] if frames else []), edge, edge, 3)
        given = np.random.default_rng(batch).integers(0, 256, size, dtype=np.uint8)
        pixels = normalised(given)
        sides = {"transformers:bfloat16": of_transformers(half, pixels)}
        if compiled and (faster := of_compiled(config, pixels, device)):
            sides["transformers:bfloat16, compiled"] = faster
        sides["reference:bfloat16"] = of_gitfast(reference, pixels)
        fit = [name for name in engines if batch <= MOST_ROWS or "decode" not in ENGINES[name]]
        sides |= {f"gitfast:{name}": of_gitfast(engines[name], given) for name in fit}
        sides["gitfast:bfloat16, float32 pixels"] = of_gitfast(engines["bfloat16"], pixels)
        if batch == 1:
            for name in [name for name in fit if name.startswith("bfloat16") and "prefix" not in name]:
                sides[f"gitfast:{name}, {BEAMS} beams"] = of_gitfast(engines[name], given, BEAMS)
        for row in measure(sides, of_gitfast(exact, pixels)(NEW_TOKENS), rounds):
            name = str(row["engine"]).removeprefix("gitfast:")
            least = floor(own, batch, ENGINES.get(name, {}), ceilings) * 1e3
            yield {"shape": shape, "batch": batch, **row, "floor_ms": least}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [name for name in SHAPES if name != "tiny"]
    parser.add_argument("--shape", nargs="+", default=shapes, choices=shapes)
    parser.add_argument("--batch", type=int, nargs="+", help="default: 1 8 64 of git-base, 1 of the others")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true", help="also transformers by torch.compile, which takes long")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    ceilings, rounds = CudaClock(torch).ceilings(rounds=3), arguments.rounds
    report = {"gpu": gpu_facts(torch), "ceilings": dataclasses.asdict(ceilings), "new_tokens": NEW_TOKENS}
    report |= {"rounds": rounds, "results": []}
    columns = ("caption ms", "first ms", "step us", "floor ms", "captions/s", "speedup", "same")
    print("{:15} {:5} {:32} {:>10} {:>10} {:>9} {:>9} {:>11} {:>8} {:>6}".format("shape", "batch", "engine", *columns))
    for shape in arguments.shape:
        batches = arguments.batch or BATCHES.get(shape, [1])
        for row in run(shape, batches, rounds, "cuda", ceilings, compiled=arguments.compiled):
            report["results"].append(row)
            print(
                "{shape:15} {batch:5} {engine:32} {caption_ms:10.3f} {first_token_ms:10.3f} {step_us:9.1f}"
                " {floor_ms:9.3f} {captions_per_s:11.1f} {speedup:8.2f} {same_tokens:6.1%}".format(**row),
                flush=True,
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
