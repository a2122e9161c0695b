"""Many inputs through an engine, a bounded number at a time: read, encode, generate, score."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Generator, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from gitfast.engines.base import Engine
from gitfast.engines.caching import CachingEngine, file_key
from gitfast.errors import GitfastError, ImageError
from gitfast.inputs.processor import Processor
from gitfast.inputs.reading import map_in_threads
from gitfast.inputs.sources import detached, read_bytes, read_input
from gitfast.pipeline.iterators import grouped, map_ahead, prefetch
from gitfast.pipeline.options import DEFAULT_BATCHING, Batching
from gitfast.results import Result, Timings
from gitfast.types import Generation, GenerationOptions, ImagePrefix

Prompts = Sequence[list[int]]  # for one source

_MAX_ROWS = 64  # sequences decoded together: bounds the keys and values of their text
_WINDOW = 4  # times the rows decoded at once are handed over together: only the last of them leave places empty
_WINDOW_BYTES = 2 << 30  # for their prefixes; one batch may have more


@dataclass(frozen=True)
class _Read:
    """Pixels of an input with a state, such as a file or a PIL image, which two threads must not read at once."""

    pixels: np.ndarray | ImagePrefix | GitfastError


@dataclass(frozen=True)
class EncodedBatch:
    """Prefixes of some sources in order, an error in the place of a bad one's, and the seconds they took."""

    prefixes: list[ImagePrefix | GitfastError]
    read_seconds: float
    encode_seconds: float


def default_batch_size(engine: Engine) -> int:
    """Return 8; if the engine refills its rows, as many as it decodes at once, but no more than 64."""
    rows_at_once = engine.rows_at_once
    return 8 if rows_at_once is None else min(64, rows_at_once)


def encode(
    engine: Engine, processor: Processor, sources: Iterable[Any], batching: Batching
) -> Generator[EncodedBatch, None, None]:
    """Encode ``batch_size`` sources at a time, in order; no more of them are held, but those that are read ahead.

    If the engine computes on a device, or ``sources`` have a length, the next batch is read in a thread meanwhile; with
    ``workers`` so many threads read two batches ahead of any engine. Closing ends them.

    Raises:
        ImageError: a source is bad and ``on_error`` is "raise": after those before it. The message gives its index.
        CancelledError, DeadlineError: by ``cancel``.
    """
    argument = "images" if processor.num_frames is None else "videos"
    alone = isinstance(sources, Sized) and len(sources) == 1
    normalize = engine.normalization != processor.image_processor.normalization
    rectangles = processor.image_processor.crop_size is None  # without a crop, images keep their aspect ratio
    cache = engine if isinstance(engine, CachingEngine) and processor.num_frames is None else None

    def read_file(cache: CachingEngine, source: str | os.PathLike[str] | bytes) -> np.ndarray | ImagePrefix:
        """Read the pixels of an encoded image, or its prefix if the same bytes were read before."""
        data = read_bytes(source, processor.limits.max_image_bytes)
        key = file_key(data, (processor.image_processor, normalize))
        if (prefix := cache.of_file(key)) is not None:
            return prefix
        try:
            pixels = read_input(processor, data, batching.clips, normalize=normalize)
        except ImageError:  # once more by its name, for the message
            return read_input(processor, source, batching.clips, normalize=normalize)
        cache.note_file(key, pixels)
        return pixels

    def read_one(source: Any) -> np.ndarray | ImagePrefix | GitfastError:
        if isinstance(source, _Read):
            return source.pixels
        if isinstance(source, (ImagePrefix, GitfastError)):  # an error: the input could not be found
            return source
        try:
            if cache is not None and isinstance(source, (str, os.PathLike, bytes)):
                return read_file(cache, source)
            return read_input(processor, source, batching.clips, normalize=normalize)
        except ImageError as error:
            return error

    def alone_first(source: Any) -> Any:
        """Return a source that threads may read; one that cannot be read beside others is read here."""
        ready = detached(processor, source)
        return _Read(read_one(source)) if ready is None else ready

    def read(batch: list[Any]) -> tuple[list[np.ndarray | ImagePrefix | GitfastError], float]:
        begin = time.perf_counter()
        pixels = map_in_threads(read_one, [alone_first(source) for source in batch])
        return pixels, time.perf_counter() - begin

    batch_size = batching.batch_size or default_batch_size(engine)

    def batches() -> Generator[tuple[list[np.ndarray | ImagePrefix | GitfastError], float], None, None]:
        if batching.workers is None:
            groups = grouped(sources, batch_size)
            # An iterable of unknown length may be slow: a CPU engine is not to wait for its next batch with results.
            ahead = engine.rows_at_once is not None or isinstance(sources, Sized)
            yield from prefetch(read, groups) if ahead else map(read, groups)
            return
        single = map_ahead(read_one, map(alone_first, sources), batching.workers, ahead=2 * batch_size)
        with contextlib.closing(single):
            begin = time.perf_counter()
            for group in grouped(single, batch_size):
                yield group, time.perf_counter() - begin  # the time that the engine waited
                begin = time.perf_counter()

    start = 0
    with contextlib.closing(batches()) as batches_read:
        for pixels, read_seconds in batches_read:
            errors = [(i, value) for i, value in enumerate(pixels) if isinstance(value, GitfastError)]
            bad, error = errors[0] if errors and batching.on_error == "raise" else (len(pixels), None)
            begin = time.perf_counter()
            prefixes = _encode_arrays(engine, pixels[:bad], batching, interpolate_positions=rectangles)
            yield EncodedBatch(prefixes, read_seconds, time.perf_counter() - begin)
            if error is not None:
                raise error if alone else type(error)(f"{argument}[{start + bad}]: {error}") from None
            start += len(pixels)


def generate(
    engine: Engine,
    processor: Processor,
    sources: Iterable[Any],
    prompts: Iterable[Prompts],
    options: GenerationOptions,
    batching: Batching,
    *,
    show_prompt: bool,
) -> Generator[list[Result], None, None]:
    """Continue the prompts of each source on it; yield for every source the results of its prompts, in order.

    Batches are decoded one by one, or as many together as the engine can refill its rows from.

    Raises:
        ImageError: as ``encode``, after the results of the sources before.
    """
    waiting = iter(prompts)
    sequences = max(1, options.num_beams, options.num_return_sequences)
    rows_at_once = engine.rows_at_once
    window_rows = 1 if rows_at_once is None else _WINDOW * rows_at_once
    with contextlib.closing(encode(engine, processor, sources, batching)) as batches:
        jobs = (_Job(batch, list(itertools.islice(waiting, len(batch.prefixes)))) for batch in batches)
        # Full by rows or by bytes, whichever is first.
        full = window_rows * _WINDOW_BYTES
        for window in grouped(
            jobs, full, lambda job: max(job.rows * sequences * _WINDOW_BYTES, job.nbytes * window_rows)
        ):
            yield from _generate_window(engine, processor, window, options, batching, show_prompt=show_prompt)


@dataclass(frozen=True)
class _Job:
    batch: EncodedBatch
    prompts: list[Prompts]  # for each source of the batch

    @property
    def rows(self) -> int:
        """Rows of the window; an error counts as one, so that a window of errors alone ends, too."""
        return sum(max(1, len(texts)) for texts in self.prompts)

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self.batch.prefixes if not isinstance(prefix, GitfastError))


def _generate_window(
    engine: Engine,
    processor: Processor,
    window: list[_Job],
    options: GenerationOptions,
    batching: Batching,
    *,
    show_prompt: bool,
) -> list[list[Result]]:
    """Generate for a window and empty it: its prefixes are not to be held while the next are made."""
    read_seconds = sum(job.batch.read_seconds for job in window)
    encode_seconds = sum(job.batch.encode_seconds for job in window)
    sources = [pair for job in window for pair in zip(job.batch.prefixes, job.prompts, strict=True)]
    window.clear()
    rows = [(prefix, ids) for prefix, texts in sources if not isinstance(prefix, GitfastError) for ids in texts]
    begin = time.perf_counter()
    generated = iter(_generate_rows(engine, rows, options, batching))
    timings = Timings(read=read_seconds, encode=encode_seconds, generate=time.perf_counter() - begin)
    results = []
    for prefix, texts in sources:
        if isinstance(prefix, GitfastError):
            results.append([Result(text="", error=prefix)] * len(texts))
        else:
            shown = [ids[1:] if show_prompt else [] for ids in texts]
            found = [make_result(processor, next(generated), ids) for ids in shown]
            results.append([dataclasses.replace(result, timings=timings) for result in found])
    return results


def score(
    engine: Engine,
    prefix: ImagePrefix,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    batching: Batching = DEFAULT_BATCHING,
) -> list[np.ndarray]:
    """Compute log-probabilities of every token of each continuation of ``prompt``, float32 (len,)."""
    logprobs: list[np.ndarray] = []
    for start in range(0, len(continuations), _MAX_ROWS):
        sequences = [[*prompt, *ids] for ids in continuations[start : start + _MAX_ROWS]]
        logprobs += engine.score([prefix] * len(sequences), sequences, **batching.cancelling())
    return [x[len(prompt) - 1 :] for x in logprobs]


def make_result(processor: Processor, generations: Sequence[Generation], shown: Sequence[int]) -> Result:
    """Make the best generation a result, the others its alternatives; ``shown`` are prompt tokens before the text."""
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
    engine: Engine,
    pixels: Sequence[np.ndarray | ImagePrefix | GitfastError],
    batching: Batching,
    *,
    interpolate_positions: bool,
) -> list[ImagePrefix | GitfastError]:
    """Encode arrays, those of one shape together; prefixes and errors stay."""
    encoded = {i: value for i, value in enumerate(pixels) if not isinstance(value, np.ndarray)}
    by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for i, value in enumerate(pixels):
        if isinstance(value, np.ndarray):
            by_shape.setdefault(value.shape, []).append((i, value))
    for group in by_shape.values():
        arrays = np.stack([value for _, value in group])
        prefixes = engine.encode(arrays, interpolate_positions=interpolate_positions, **batching.cancelling())
        encoded.update(zip((i for i, _ in group), prefixes, strict=True))
    return [encoded[i] for i in range(len(pixels))]


def _generate_rows(
    engine: Engine, rows: Sequence[tuple[ImagePrefix, list[int]]], options: GenerationOptions, batching: Batching
) -> list[list[Generation]]:
    count = max(1, _MAX_ROWS // max(1, options.num_beams, options.num_return_sequences))
    if engine.rows_at_once is not None:
        count = max(1, len(rows))
    generated: list[list[Generation]] = []
    for start in range(0, len(rows), count):
        prefixes, prompts = zip(*rows[start : start + count], strict=True)
        generated += engine.generate(prefixes, prompts, options, **batching.cancelling())
    return generated
