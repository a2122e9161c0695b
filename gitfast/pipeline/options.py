"""Keyword arguments of the tasks: the reading of inputs, and ``GenerationOptions``."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from gitfast import arguments
from gitfast.errors import ArgumentError
from gitfast.inputs.sources import ClipSampling
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.inputs.video import Sampling
from gitfast.types import CancelToken, GenerationOptions

OnError = Literal["raise", "return"]

MAX_WORKERS = 256

# The decoding behind the published scores; the default is greedy, as people use the Hugging Face checkpoints.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"num_beams": 4, "length_penalty": 0.6, "length_penalty_form": "paper"},
}


class ReadingOptions(TypedDict, total=False):
    """Keyword arguments of every task, for the reading of its inputs.

    Attributes:
        batch_size: Inputs encoded together. None: 8, or on an engine that refills its rows as many as it decodes at
            once, 64 at most.
        num_frames: Frames taken of a clip; None: as many as the model was trained with.
        sampling: The frames of a clip: "uniform", evenly; "hf", a random window of four times as many, as transformers'
            example has it; their indices; or a function from the number of frames to indices.
        sampling_seed: The seed of that window.
        workers: Threads that read inputs ahead of the engine. None: one batch ahead of an engine on a device, and of
            one on the CPU if the inputs are a list.
        cancel: Ends the call from another thread, or at a deadline: it raises CancelledError or DeadlineError.
    """

    batch_size: int | None
    workers: int | None
    cancel: CancelToken | None
    num_frames: int | None
    sampling: Sampling
    sampling_seed: int


class StreamOptions(ReadingOptions, total=False):
    """Keyword arguments of ``Model.stream``: ``ReadingOptions``, the fields of ``GenerationOptions``, and two more.

    Attributes:
        preset: "paper": the search behind the published scores, 4 beams with the paper's length penalty.
        allowed_texts: Texts, one of which must come out.
    """

    preset: Literal["paper"] | None
    allowed_texts: Sequence[str] | None
    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    num_return_sequences: int
    length_penalty: float
    length_penalty_form: Literal["transformers", "paper"]
    early_stopping: bool | Literal["never"]
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float
    no_repeat_ngram_size: int
    ban_last_token: bool
    bad_words_ids: Sequence[Sequence[int]]
    suppress_tokens: Sequence[int]
    begin_suppress_tokens: Sequence[int]
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    allowed_token_ids: Sequence[Sequence[int]] | None


class TaskOptions(StreamOptions, total=False):
    """Keyword arguments of the other tasks that generate: ``StreamOptions``, and one more.

    Attributes:
        on_error: "raise" the first bad input's error, or "return" it in its result's ``error``.
    """

    on_error: OnError


T = TypeVar("T")


def polled(items: Iterable[T], cancel: CancelToken | None) -> Iterator[T]:
    """Yield ``items``; raise the error of ``cancel`` before the next once it has ended."""
    for item in items:
        if cancel is not None:
            cancel.check()
        yield item


_FIELD_TYPES = typing.get_type_hints(GenerationOptions)
# Checks by the type of a field; what has another type is checked by the search.
_CHECKS: dict[Any, Callable[[str, Any], Any]] = {int: arguments.integer, float: arguments.real, bool: arguments.flag}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """The inputs encoded together, the choice of clips' frames, and the treatment of unreadable inputs."""

    batch_size: int | None = None  # as many as suit the engine
    on_error: OnError = "raise"
    clips: ClipSampling = dataclasses.field(default_factory=ClipSampling)
    workers: int | None = None  # threads that read ahead
    cancel: CancelToken | None = None

    def __post_init__(self) -> None:
        if self.cancel is not None and not isinstance(self.cancel, CancelToken):
            raise ArgumentError(f"cancel: expected a gitfast.CancelToken, got {arguments.shown(self.cancel)}")
        if self.workers is not None:
            number = arguments.integer("workers", self.workers)
            if not 1 <= number <= MAX_WORKERS:
                raise ArgumentError(f"workers: expected 1 to {MAX_WORKERS} threads, got {arguments.shown(number)}")
            object.__setattr__(self, "workers", number)
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", arguments.integer("batch_size", self.batch_size, minimum=1))
        arguments.choice("on_error", self.on_error, ("raise", "return"))

    def polled(self, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items`` until ``cancel`` ends the call: for loops in Python that are as long as an argument."""
        return polled(items, self.cancel)

    def cancelling(self) -> dict[str, Any]:
        """Return the argument that ends calls of an engine, where there is one: engines of tests need not take it."""
        return {} if self.cancel is None else {"cancel": self.cancel}


DEFAULT_BATCHING = Batching()


def make_batching(values: Mapping[str, Any]) -> Batching:
    """Build ``Batching`` from the keyword arguments that a task was given; those of generation are left alone."""
    clips = {
        field: values[name]
        for name, field in (("num_frames", "num_frames"), ("sampling", "sampling"), ("sampling_seed", "seed"))
        if name in values
    }
    batching = {name: values[name] for name in ("batch_size", "on_error", "workers", "cancel") if name in values}
    return Batching(**batching, clips=ClipSampling(**clips))


def check_options(values: Mapping[str, Any], kind: type) -> None:
    """Refuse keyword arguments that are not keys of ``kind``, a TypedDict, or are of another type than their field.

    Raises:
        ArgumentError: the message names it, and the nearest one there is.
    """
    _check_names(values, kind)
    for name, value in values.items():
        expected = _FIELD_TYPES.get(name)
        if expected in _CHECKS:
            _CHECKS[expected](name, value)
        elif expected == int | None and value is not None:
            arguments.integer(name, value)


def _check_names(values: Mapping[str, Any], kind: type) -> None:
    known = kind.__annotations__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ArgumentError(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def make_options(
    values: Mapping[str, Any], tokenizer: Tokenizer, *, room: int, defaults: Mapping[str, Any] | None = None
) -> GenerationOptions:
    """Build ``GenerationOptions`` from the keyword arguments that a task was given; those of reading are left alone.

    Args:
        values: Keys of ``TaskOptions``. They win over ``preset``.
        tokenizer: Encodes the allowed texts.
        room: Text positions left behind the longest prompt; the default ``max_new_tokens`` is not larger.
        defaults: Fields of ``GenerationOptions`` that the checkpoint asks for; ``preset`` and ``values`` win.

    Raises:
        ArgumentError: an unknown name or preset, or no allowed texts.
        CancelledError, DeadlineError: by ``cancel``, between allowed texts.
    """
    _check_names(values, TaskOptions)
    fields = {name: value for name, value in values.items() if name in _FIELD_TYPES}
    preset = values.get("preset")
    if preset is not None:
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ArgumentError(
                f"preset: expected one of {', '.join(map(repr, PRESETS))}, got {arguments.shown(preset)}"
            )
        fields = PRESETS[preset] | fields
    if values.get("allowed_texts") is not None:
        allowed = arguments.texts("allowed_texts", values["allowed_texts"])
        if not allowed:
            raise ArgumentError("allowed_texts: expected at least one text, got none")
        fields["allowed_token_ids"] = [tokenizer.encode(text) for text in polled(allowed, values.get("cancel"))]
    return GenerationOptions(**_completed(fields, defaults or {}, room))


def _completed(fields: dict[str, Any], defaults: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Complete ``fields`` with those of the checkpoint's ``defaults`` that are compatible with them."""
    usual = {"max_new_tokens": GenerationOptions.max_new_tokens, **defaults}
    usual["max_new_tokens"] = max(1, min(usual["max_new_tokens"], room))
    if fields.get("do_sample") and "num_beams" not in fields:
        usual.pop("num_beams", None)
    if fields.get("num_beams", 1) > 1 and "do_sample" not in fields:
        usual.pop("do_sample", None)
    if fields.get("allowed_token_ids") is not None:
        usual.pop("forced_bos_token_id", None)
        usual.pop("forced_eos_token_id", None)
    chosen = {**usual, **fields}
    for name, most in (("min_new_tokens", "max_new_tokens"), ("num_return_sequences", "num_beams")):
        if name in usual and name not in fields and not (name == "num_return_sequences" and chosen.get("do_sample")):
            chosen[name] = min(chosen[name], chosen.get(most, 1))
    return chosen
