"""The way of many inputs through an engine, a bounded number at a time: read, encode, generate, score."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gitfast.engines.base import Engine, Generation, GenerationOptions, ImagePrefix, normalization_of
from gitfast.errors import GitfastError
from gitfast.inputs import ClipSampling, read_pixels
from gitfast.processor import Processor
from gitfast.results import Result, Timings

OnError = Literal["raise", "return"]

_MAX_ROWS = 64  # sequences decoded together: bounds the keys and values of their text


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many inputs are encoded together, which frames of clips, and what becomes of inputs that cannot be read."""

    batch_size: int = 8
    on_error: OnError = "raise"
    clips: ClipSampling = field(default_factory=ClipSampling)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.on_error not in ("raise", "return"):
            raise ValueError(f"on_error: expected 'raise' or 'return', got {self.on_error!r}")


@dataclass(frozen=True)
class EncodedBatch:
    """Prefixes of some sources in order, an error in the place of a bad one's, and the seconds they took."""

    prefixes: list[ImagePrefix | GitfastError]
    read_seconds: float
    encode_seconds: float


def encode(engine: Engine, processor: Processor, sources: Sequence[Any], batching: Batching) -> Iterator[EncodedBatch]:
    """``batch_size`` sources at a time, in order.

    Raises:
        ImageError: a source is bad and ``on_error`` is "raise"; the message gives its index.
    """
    argument = "images" if processor.num_frames is None else "videos"
    normalize = normalization_of(engine) != processor.image_processor.normalization
    for start in range(0, len(sources), batching.batch_size):
        begin = time.perf_counter()
        some = sources[start : start + batching.batch_size]
        pixels = read_pixels(processor, some, batching.clips, normalize=normalize)
        for i, value in enumerate(pixels, start):
            if isinstance(value, GitfastError) and batching.on_error == "raise":
                raise value if len(sources) == 1 else type(value)(f"{argument}[{i}]: {value}") from None
        middle = time.perf_counter()
        # Without a crop, images keep their aspect ratio.
        rectangles = processor.image_processor.crop_size is None
        prefixes = _encode_arrays(engine, pixels, interpolate_positions=rectangles)
        yield EncodedBatch(prefixes, middle - begin, time.perf_counter() - middle)


def generate(
    engine: Engine,
    processor: Processor,
    sources: Sequence[Any],
    prompts: Sequence[Sequence[list[int]]],
    options: GenerationOptions,
    batching: Batching,
    *,
    show_prompt: bool,
) -> Iterator[list[Result]]:
    """Continues ``prompts[i]`` on ``sources[i]``: for every source the results of its prompts, in order."""
    waiting = iter(prompts)
    for batch in encode(engine, processor, sources, batching):
        jobs = [(prefix, next(waiting)) for prefix in batch.prefixes]
        rows = [(prefix, ids) for prefix, texts in jobs if not isinstance(prefix, GitfastError) for ids in texts]
        begin = time.perf_counter()
        generated = iter(_generate_rows(engine, rows, options))
        timings = Timings(read=batch.read_seconds, encode=batch.encode_seconds, generate=time.perf_counter() - begin)
        for prefix, texts in jobs:
            if isinstance(prefix, GitfastError):
                yield [Result(text="", error=prefix)] * len(texts)
            else:
                shown = [ids[1:] if show_prompt else [] for ids in texts]
                results = [make_result(processor, next(generated), ids) for ids in shown]
                yield [dataclasses.replace(result, timings=timings) for result in results]


def score(
    engine: Engine, prefix: ImagePrefix, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Log-probabilities of every token of each continuation of ``prompt``, float32 (len,)."""
    logprobs: list[np.ndarray] = []
    for start in range(0, len(continuations), _MAX_ROWS):
        sequences = [[*prompt, *ids] for ids in continuations[start : start + _MAX_ROWS]]
        logprobs += engine.score([prefix] * len(sequences), sequences)
    return [x[len(prompt) - 1 :] for x in logprobs]


def make_result(processor: Processor, generations: Sequence[Generation], shown: Sequence[int]) -> Result:
    """The best generation, the others as its alternatives; ``shown`` are prompt tokens that begin the text."""
    best, *others = (
        Result(
            text=processor.tokenizer.decode([*shown, *generation.token_ids]),
            token_ids=tuple(generation.token_ids),
            token_logprobs=tuple(generation.token_logprobs),
            score=generation.score,
            finish_reason=generation.finish_reason,
        )
        for generation in generations
    )
    return dataclasses.replace(best, alternatives=tuple(others))


def _encode_arrays(
    engine: Engine, pixels: Sequence[np.ndarray | ImagePrefix | GitfastError], *, interpolate_positions: bool
) -> list[ImagePrefix | GitfastError]:
    """Encodes what is an array, those of one shape together; the rest stays."""
    encoded = {i: value for i, value in enumerate(pixels) if not isinstance(value, np.ndarray)}
    by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for i, value in enumerate(pixels):
        if isinstance(value, np.ndarray):
            by_shape.setdefault(value.shape, []).append((i, value))
    for group in by_shape.values():
        prefixes = engine.encode(np.stack([value for _, value in group]), interpolate_positions=interpolate_positions)
        encoded.update(zip((i for i, _ in group), prefixes, strict=True))
    return [encoded[i] for i in range(len(pixels))]


def _generate_rows(
    engine: Engine, rows: Sequence[tuple[ImagePrefix, list[int]]], options: GenerationOptions
) -> list[list[Generation]]:
    count = max(1, _MAX_ROWS // max(1, options.num_beams, options.num_return_sequences))
    generated: list[list[Generation]] = []
    for start in range(0, len(rows), count):
        prefixes, prompts = zip(*rows[start : start + count], strict=True)
        generated += engine.generate(prefixes, prompts, options)
    return generated
