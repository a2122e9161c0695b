"""Times whole captions, engines side by side in one run: pixels in, token ids out, batch 1.

    python benchmarks/caption.py [--shape git-base] [--rounds 9] [--threads N] [--json FILE] [engine ...]

An engine is named with its dtype, as in ``transformers:float32``; the first one is what the others are compared to.
All run the same random weights on the same pixels, and none may end early, so that every caption has the same
length. Engines take turns within each round, so that noise meets all alike; ratios are taken round by round. Beside
the speed stand the error of the logits, measured against float64, and how often the first choice is the same.

For gitfast a second table compares a decode step with a loop that only reads as many bytes, and a caption by beam
search, eight images together, and one more question about an image with one greedy caption.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from captioners import SHAPES, Captioner, Gitfast, make_captioner, milliseconds, random_model, random_pixels
from stream import Stream

from gitfast import _C
from gitfast.bench.machine import machine_facts

DEFAULT = ["transformers:float32", "transformers:bfloat16", "gitfast:float32", "gitfast:bfloat16", "gitfast:int8"]


@dataclass
class Samples:
    """Milliseconds of each round."""

    name: str
    captioner: Captioner
    tokens: list[int] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # to the first token: encode, prefill, one head


def in_turns(rounds: int, works: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Milliseconds of each round for each of the works, which run once before."""
    for work in works:
        work()
    samples: list[list[float]] = [[] for _ in works]
    for i in range(rounds):
        for j in range(len(works)) if i % 2 else reversed(range(len(works))):
            time.sleep(0.01)
            samples[j].append(milliseconds(works[j]))
    return samples


def measure(engines: list[Samples], rounds: int, new_tokens: int) -> None:
    for samples in engines:
        samples.tokens = samples.captioner.caption(new_tokens)  # warms up too
    for i in range(rounds):
        for samples in engines if i % 2 else engines[::-1]:
            time.sleep(0.05)  # the threads of the engine before stop spinning
            samples.captioner.caption(1)
            samples.first.append(milliseconds(lambda: samples.captioner.caption(1)))  # noqa: B023
            samples.whole.append(milliseconds(lambda: samples.captioner.caption(new_tokens)))  # noqa: B023


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Of a to b, in the median over the rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def summary(samples: Samples, base: Samples, new_tokens: int) -> dict[str, object]:
    whole, first = statistics.median(samples.whole), statistics.median(samples.first)
    return {
        "engine": samples.name,
        "caption_ms": whole,
        "first_token_ms": first,
        "step_ms": (whole - first) / (new_tokens - 1),
        "speedup": ratio(base.whole, samples.whole),
        "equal_tokens": sum(a == b for a, b in zip(samples.tokens, base.tokens, strict=True)),
        "samples_ms": {"caption": samples.whole, "first_token": samples.first},
    }


def exact_logits(config: transformers.GitConfig, pixels: np.ndarray, ids: list[int]) -> np.ndarray:
    model = random_model(config).double()
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(pixels).double())
    return output.logits[0, -len(ids) :].numpy()


def accuracy(captioner: Captioner, ids: list[int], exact: np.ndarray) -> dict[str, float]:
    """RMS error of the logits in units of their own spread, and the share of positions with the same first choice."""
    got = captioner.logits(ids)
    return {
        "logit_error": float(np.sqrt(np.square(got - exact).mean()) / exact.std()),
        "top1_agreement": float((got.argmax(-1) == exact.argmax(-1)).mean()),
    }


def measure_gitfast(captioner: Gitfast, rounds: int, new_tokens: int, threads: int) -> dict[str, object]:
    """What one more beam, image or question costs, and how near a step is to the speed of the memory."""
    one = [captioner.prefix]
    eight = [captioner.engine.encode(captioner.pixels)[0] for _ in range(8)]
    stream = Stream(captioner.step_bytes(), threads)
    staged = Gitfast(*captioner.arguments, two_stage_head=True)
    first, greedy, two_stage, together, first8, caption, beam_caption, loop = in_turns(
        rounds,
        [
            lambda: captioner.decode(one, 1),
            lambda: captioner.decode(one, new_tokens),
            lambda: staged.decode([staged.prefix], new_tokens),
            lambda: captioner.decode(eight, new_tokens),
            lambda: captioner.decode(eight, 1),
            lambda: captioner.caption(new_tokens),
            lambda: captioner.caption(new_tokens, beams=4),
            lambda: stream.read(new_tokens - 1),
        ],
    )
    stream.close()
    steps = [g - f for g, f in zip(greedy, first, strict=True)]
    steps8 = [g - f for g, f in zip(together, first8, strict=True)]
    return {
        "step_bytes": stream.num_bytes,
        "weight_mb": captioner.engine.nbytes / 1e6,
        "step_to_stream": ratio(steps, loop),
        "step_ms": statistics.median(steps) / (new_tokens - 1),
        "stream_ms": statistics.median(loop) / (new_tokens - 1),
        "beam4_to_greedy": ratio(beam_caption, caption),
        "eight_images_to_one": ratio(steps8, steps),
        "question_to_caption": ratio(greedy, caption),
        "two_stage_to_full_head": ratio(two_stage, greedy),
        "samples_ms": {
            "caption": caption,
            "beam4": beam_caption,
            "decode": greedy,
            "first_step": first,
            "eight": together,
            "eight_first_step": first8,
            "two_stage": two_stage,
            "stream": loop,
        },
    }


def print_table(rows: list[dict[str, object]], columns: dict[str, tuple[str, str]]) -> None:
    lines = [[title for title, _ in columns.values()], ["---"] * len(columns)]
    lines += [[form.format(row[key]) for key, (_, form) in columns.items()] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


ENGINE_COLUMNS = {
    "engine": ("engine", "{}"),
    "caption_ms": ("caption ms", "{:.1f}"),
    "first_token_ms": ("to first token ms", "{:.1f}"),
    "step_ms": ("per token ms", "{:.2f}"),
    "speedup": ("speed-up", "{:.2f}x"),
    "equal_tokens": ("same tokens", "{}"),
    "logit_error": ("logit error", "{:.5f}"),
    "top1_agreement": ("same first choice", "{:.1%}"),
}
GITFAST_COLUMNS = {
    "engine": ("engine", "{}"),
    "weight_mb": ("weights MB", "{:.1f}"),
    "step_ms": ("step ms", "{:.2f}"),
    "stream_ms": ("reading loop ms", "{:.2f}"),
    "step_to_stream": ("step / loop", "{:.2f}"),
    "beam4_to_greedy": ("4 beams / greedy", "{:.2f}"),
    "eight_images_to_one": ("8 images / 1, decode", "{:.2f}"),
    "question_to_caption": ("next question / caption", "{:.2f}"),
    "two_stage_to_full_head": ("two-stage head / full, decode", "{:.2f}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", default=DEFAULT, metavar="engine")
    parser.add_argument("--shape", choices=SHAPES, default="git-base")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument(
        "--threads", type=int, default=0, help="of every engine; default: the CPUs this process may use"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results, with every sample, to FILE")
    arguments = parser.parse_args()
    arguments.threads = _C.choose_num_threads(arguments.threads)
    config = transformers.GitConfig(**SHAPES[arguments.shape])
    pixels = random_pixels(config)

    engines = []
    for name in arguments.engines:
        try:
            engines.append(Samples(name, make_captioner(name, config, pixels, arguments.threads)))
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed")
        except ValueError as error:
            parser.error(str(error))
    measure(engines, arguments.rounds, arguments.new_tokens)
    rows = [summary(samples, engines[0], arguments.new_tokens) for samples in engines]
    vocabulary, length = config.vocab_size, min(32, config.max_position_embeddings)
    ids = np.random.default_rng(1).integers(0, vocabulary, length).tolist()
    exact = exact_logits(config, pixels, ids)
    for row, samples in zip(rows, engines, strict=True):
        row |= accuracy(samples.captioner, ids, exact)

    used = {name.partition(":")[0] for name in arguments.engines} & {"openvino", "onnxruntime"}
    machine = machine_facts("torch", "transformers", "numpy", *sorted(used))
    print(
        f"{arguments.shape}, random weights, batch 1, {arguments.new_tokens} new tokens, median of {arguments.rounds}; "
        f"{arguments.threads} threads on {machine['cpu']}\n"
    )
    print_table(rows, ENGINE_COLUMNS)
    ours = [samples for samples in engines if isinstance(samples.captioner, Gitfast)]
    engines.clear()
    more = [
        {"engine": s.name} | measure_gitfast(s.captioner, arguments.rounds, arguments.new_tokens, arguments.threads)  # type: ignore[arg-type]
        for s in ours
    ]
    print()
    print_table(more, GITFAST_COLUMNS)
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        result = {"benchmark": "caption", "machine": machine, "settings": settings, "results": rows, "gitfast": more}
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
