"""The model's work for a job, in its own thread: encode the images once, then write, rank or score texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gitfast.errors import CancelledError, DeadlineError, GitfastError
from gitfast.model import Model
from gitfast.results import Result
from gitfast.serve import tracing
from gitfast.serve.errors import invalid, of_model, without_frames
from gitfast.serve.jobs import Job
from gitfast.serve.metrics import Metrics
from gitfast.serve.settings import Settings
from gitfast.types import ImagePrefix

T = TypeVar("T")


@dataclass
class Inference:
    """One request's way through the model. Everything but the constructor is for the job's thread."""

    model: Model
    settings: Settings
    metrics: Metrics
    job: Job[Any]
    parent: Any = None  # span
    encode_seconds: float = field(default=0.0, init=False)
    generate_seconds: float = field(default=0.0, init=False)

    @property
    def timings(self) -> dict[str, float]:
        seconds = {"queue": self.job.queue_seconds, "encode": self.encode_seconds, "generate": self.generate_seconds}
        return {name: round(value, 6) for name, value in seconds.items()}

    def encode(self, files: Sequence[bytes]) -> list[ImagePrefix]:
        """Encode each image or clip into a prefix.

        Raises:
            ApiError: one cannot be read, or exceeds a limit.
        """
        with self._timed("encode"):
            prefixes = self.model.encode(list(files), cancel=self.job.cancel)
        self.metrics.images.inc(len(files))
        return prefixes

    def captions(self, prefixes: Sequence[ImagePrefix], prompt: str | None, options: dict[str, Any]) -> list[Result]:
        with self._timed("generate"):
            results = self.model.caption(list(prefixes), prompt=prompt, cancel=self.job.cancel, **options)
        return self._count(results)

    def answers(self, prefix: ImagePrefix, questions: Sequence[str], options: dict[str, Any]) -> list[Result]:
        with self._timed("generate"):
            results = self.model.answer(prefix, list(questions), cancel=self.job.cancel, **options)
        return self._count(results)

    def stream(
        self, prefix: ImagePrefix, question: str | None, options: dict[str, Any], on_piece: Callable[[str], bool]
    ) -> Result:
        """Do ``captions`` or ``answers`` for one text, calling ``on_piece`` with its pieces as they come."""
        with self._timed("generate"):
            pieces = self.model.stream(prefix, question=question, cancel=self.job.cancel, **options)
            result = _exhaust(pieces, on_piece)
        return self._count([result])[0]

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call any other function of the model that takes prefixes: ``classify``, ``score``, ``attend``."""
        with self._timed("generate"):
            return function(*arguments, cancel=self.job.cancel, **options)

    def _count(self, results: list[Result]) -> list[Result]:
        self.metrics.tokens.inc(sum(len(r.token_ids) for result in results for r in (result, *result.alternatives)))
        return results

    @contextmanager
    def _timed(self, what: str) -> Generator[None]:
        """Count the seconds of a stage, make bad input the client's error, and stop where the job has ended."""
        self.job.cancel.check()
        begin = time.perf_counter()
        try:
            with tracing.child_span(f"gitfast.{what}", self.parent):
                yield
        except (CancelledError, DeadlineError):
            raise
        except (GitfastError, ValueError) as error:
            raise of_model(without_frames(error)) from None
        seconds = time.perf_counter() - begin
        setattr(self, f"{what}_seconds", getattr(self, f"{what}_seconds") + seconds)
        histogram = self.metrics.encode_seconds if what == "encode" else self.metrics.generate_seconds
        histogram.observe(seconds)


def _exhaust(pieces: Generator[str, None, Result], on_piece: Callable[[str], bool]) -> Result:
    try:
        while True:
            if not on_piece(next(pieces)):
                raise CancelledError
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        pieces.close()


def sampling_options(
    *, temperature: float | None, top_p: float | None, top_k: int | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Return options of ``Model.caption``: greedy, unless the arguments ask for sampling."""
    asked = temperature is None and (top_p not in (None, 1) or bool(top_k))
    if not (temperature or asked):
        return {}
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return options | {"do_sample": True, "seed": None if seed is None else seed % 2**63}


def search_options(
    settings: Settings, sampling: dict[str, Any], *, num_beams: int | None, num_texts: int | None, name: str
) -> dict[str, Any]:
    """Return options for ``num_texts`` texts of each prompt: samples, or the best of at least as many beams.

    Raises:
        ApiError: more than the settings allow; ``name`` is the argument that says ``num_texts``.
    """
    beams, texts = num_beams or 1, num_texts or 1
    if not sampling:
        beams = max(beams, texts)
    for value, argument in ((texts, name), (beams, "num_beams")):
        if value > settings.max_beams:
            raise invalid(f"{argument}: at most {settings.max_beams}, got {value}", argument)
    return sampling | {"num_beams": beams, "num_return_sequences": texts}


def check_work(
    settings: Settings, *, images: int, prompts: int, options: dict[str, Any], max_new_tokens: int | None, name: str
) -> dict[str, Any]:
    """Check the request as a whole against the limits; return the options with their length.

    Raises:
        ApiError: too many sequences, or too long ones; ``name`` is the argument that says ``max_new_tokens``.
    """
    if max_new_tokens is not None:
        if max_new_tokens > settings.max_new_tokens:
            raise invalid(f"{name}: at most {settings.max_new_tokens}, got {max_new_tokens}", name)
        options = options | {"max_new_tokens": max_new_tokens}
    rows = images * prompts * max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
    if rows > settings.max_rows:
        raise invalid(f"{images} images, {prompts} prompts: at most {settings.max_rows} sequences, got {rows}")
    return options
