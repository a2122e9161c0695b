"""Times whole captions, engines side by side in one run: pixels in, token ids out, batch 1.

    python benchmarks/caption.py [--shape git-base] [--rounds 9] [--threads N] [--json FILE] [engine ...]

An engine is named with its dtype, as in ``transformers:float32``; the first one is what the others are compared to.
All run the same random weights on the same pixels, and none may end early, so that every caption has the same
length. Engines take turns within each round, so that noise meets all alike; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from machine import machine_facts

from gitfast import _C
from gitfast.config import GitConfig
from gitfast.engines.base import GenerationOptions
from gitfast.engines.cpu import CpuEngine

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SHAPES = {
    "git-base": {},
    "git-base-vqav2": {"vision_config": {"image_size": 480}},
    "git-base-vatex": {"num_image_with_embedding": 6},
    "git-large": {"vision_config": {**LARGE, "patch_size": 14}},
}

# A caption of n new tokens, as token ids.
Caption = Callable[[int], list[int]]


def transformers_caption(model: transformers.GitForCausalLM, dtype: str, pixels: np.ndarray, _threads: int) -> Caption:
    model = model.to(getattr(torch, dtype))
    inputs = torch.from_numpy(pixels).to(model.dtype)

    @torch.inference_mode()
    def caption(new_tokens: int) -> list[int]:
        eos = model.config.eos_token_id
        ids = model.generate(pixel_values=inputs, max_new_tokens=new_tokens, do_sample=False, suppress_tokens=[eos])
        return ids[0, 1:].tolist()

    return caption


def gitfast_caption(model: transformers.GitForCausalLM, dtype: str, pixels: np.ndarray, threads: int) -> Caption:
    config = GitConfig.from_dict(model.config.to_dict())
    weights = {name: x.float().numpy() for name, x in model.state_dict().items()}
    engine = CpuEngine.from_weights(config, weights, dtype=dtype, num_threads=threads)

    def caption(new_tokens: int) -> list[int]:
        options = GenerationOptions(max_new_tokens=new_tokens, suppress_tokens=[config.eos_token_id])
        return engine.generate(engine.encode(pixels), [[config.bos_token_id]], options)[0][0].token_ids

    return caption


ENGINES = {"transformers": transformers_caption, "gitfast": gitfast_caption}


@dataclass
class Samples:
    """Milliseconds of each round."""

    name: str
    caption: Caption
    tokens: list[int] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # to the first token: encode, prefill, one head


def time_caption(caption: Caption, new_tokens: int) -> float:
    start = time.perf_counter()
    caption(new_tokens)
    return (time.perf_counter() - start) * 1e3


def measure(engines: list[Samples], rounds: int, new_tokens: int) -> None:
    for samples in engines:
        samples.tokens = samples.caption(new_tokens)  # warms up too
    for i in range(rounds):
        for samples in engines if i % 2 else engines[::-1]:
            time.sleep(0.05)  # the threads of the engine before stop spinning
            samples.caption(1)
            samples.first.append(time_caption(samples.caption, 1))
            samples.whole.append(time_caption(samples.caption, new_tokens))


def summary(samples: Samples, base: Samples, new_tokens: int) -> dict[str, object]:
    whole, first = statistics.median(samples.whole), statistics.median(samples.first)
    agreeing = sum(a == b for a, b in zip(samples.tokens, base.tokens, strict=True))
    return {
        "engine": samples.name,
        "caption_ms": whole,
        "first_token_ms": first,
        "step_ms": (whole - first) / (new_tokens - 1),
        "speedup": statistics.median(b / s for b, s in zip(base.whole, samples.whole, strict=True)),
        "equal_tokens": f"{agreeing}/{new_tokens}",
        "samples_ms": {"caption": samples.whole, "first_token": samples.first},
    }


def print_table(rows: list[dict[str, object]]) -> None:
    columns = {
        "engine": ("engine", "{}"),
        "caption_ms": ("caption ms", "{:.1f}"),
        "first_token_ms": ("to first token ms", "{:.1f}"),
        "step_ms": ("per token ms", "{:.2f}"),
        "speedup": ("speed-up", "{:.2f}x"),
        "equal_tokens": ("same tokens", "{}"),
    }
    lines = [[title for title, _ in columns.values()], ["---"] * len(columns)]
    lines += [[form.format(row[key]) for key, (_, form) in columns.items()] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", default=["transformers:float32", "gitfast:float32"], metavar="engine")
    parser.add_argument("--shape", choices=SHAPES, default="git-base")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument(
        "--threads", type=int, default=0, help="of every engine; default: the CPUs this process may use"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results, with every sample, to FILE")
    arguments = parser.parse_args()

    arguments.threads = _C.choose_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = transformers.GitConfig(**SHAPES[arguments.shape])
    frames, size = config.num_image_with_embedding, config.vision_config.image_size
    pixels = torch.randn(1, *([frames] if frames else []), 3, size, size).numpy()
    engines = []
    for name in arguments.engines:
        kind, _, dtype = name.partition(":")
        if kind not in ENGINES:
            parser.error(f"engine: expected one of {', '.join(ENGINES)}, got {kind!r}")
        engines.append(
            Samples(name, ENGINES[kind](random_model(config), dtype or "float32", pixels, arguments.threads))
        )

    measure(engines, arguments.rounds, arguments.new_tokens)
    rows = [summary(samples, engines[0], arguments.new_tokens) for samples in engines]
    machine = machine_facts("torch", "transformers", "numpy")
    print(
        f"{arguments.shape}, random weights, batch 1, {arguments.new_tokens} new tokens, median of {arguments.rounds}; "
        f"{arguments.threads} threads on {machine['cpu']}\n"
    )
    print_table(rows)
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        with open(arguments.json, "w") as file:
            json.dump(
                {"benchmark": "caption", "machine": machine, "settings": settings, "results": rows}, file, indent=1
            )


def random_model(config: transformers.GitConfig) -> transformers.GitForCausalLM:
    """The same random weights at every call."""
    torch.manual_seed(1)
    model = transformers.GitForCausalLM(config).eval()
    with torch.no_grad():  # transformers leaves these unset
        for name, x in model.named_parameters():
            if "temporal" in name:
                x.normal_(std=0.02)
    return model


if __name__ == "__main__":
    main()
