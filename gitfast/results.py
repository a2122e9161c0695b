"""The results of the tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

from gitfast.errors import GitfastError
from gitfast.types import FinishReason


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds taken by the inputs decoded together with this one; for a call with one input, its own.

    Those inputs are its batch, or the batches handed together to an engine that refills its rows.

    Attributes:
        read: Decoding, resizing and normalising; 0 for prefixes.
        encode: Vision encoder and the keys and values of the image; 0 for prefixes, and small for cached ones.
        generate: Prompts and new tokens.
    """

    read: float = 0.0
    encode: float = 0.0
    generate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """One generated text. ``str(result)`` is the text.

    Attributes:
        text: The caption, its prompt included, or the answer without its question.
        token_ids: The new tokens, the end-of-sequence token included when it was produced.
        token_logprobs: Log-probability of each of them under the model, before any option changed it.
        score: Their sum. With beams, that of the log-probabilities that the search compared, over the length penalty.
        finish_reason: "stop" after an end-of-sequence token, "length" at ``max_new_tokens``; None with an error.
        alternatives: The other sequences when ``num_return_sequences`` asked for several, best first.
        timings: The time it took, with the inputs beside it. Two results may be equal with different timings.
        error: The reason that there is no text; only with ``on_error="return"``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    token_logprobs: tuple[float, ...] = ()
    score: float = 0.0
    finish_reason: FinishReason | None = None
    alternatives: tuple[Result, ...] = ()
    timings: Timings = field(default_factory=Timings, compare=False, repr=False)
    error: GitfastError | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Label:
    """One candidate of ``Model.classify``. ``str(label)`` is its text.

    Attributes:
        text: The label.
        index: Its place in the list that was passed.
        probability: Its share among the labels of the call; they sum to one.
        score: Log-probability of the label's tokens and the end-of-sequence token under the model.
    """

    text: str
    index: int
    probability: float
    score: float

    def __str__(self) -> str:
        return self.text
