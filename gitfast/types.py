"""The values that cross layers: image prefixes, generation options, generated sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from gitfast import _C


class CancelToken:
    """A token that ends calls given it as ``cancel=``: when ``cancel`` is called, or when its time runs out.

    A call then raises ``CancelledError`` or ``DeadlineError`` within one step of decoding, or one layer of encoding.
    One token may be given to any number of calls, and may be used from any thread.
    """

    def __init__(self, timeout: float | None = None) -> None:
        """Start the clock. ``timeout``: seconds from now on; None: no limit.

        Raises:
            TypeError: ``timeout`` is no number.
            ValueError: it is negative.
        """
        from gitfast import _C  # when first needed: importing gitfast loads no native code

        if isinstance(timeout, bool) or not (timeout is None or hasattr(timeout, "__float__")):
            raise TypeError(f"timeout: expected seconds or None, got {timeout!r}")
        self._flag = _C.CancelFlag(None if timeout is None else float(timeout))

    def cancel(self) -> None:
        """End the calls. Returns at once; they end within one step."""
        self._flag.cancel()

    @property
    def cancelled(self) -> bool:
        """True once calls end: ``cancel`` was called, or the time ran out."""
        return self._flag.cancelled or self._flag.late

    def check(self) -> None:
        """Raise the error of a call: ``CancelledError``, ``DeadlineError``, or nothing."""
        self._flag.check()


def cancel_flag(cancel: CancelToken | None) -> _C.CancelFlag | None:
    """Return the flag that native calls take; raise ``TypeError`` for anything but a token or None."""
    if cancel is None:
        return None
    if not isinstance(cancel, CancelToken):
        raise TypeError(f"cancel: expected a CancelToken or None, got {type(cancel).__name__}")
    return cancel._flag


@runtime_checkable
class ImagePrefix(Protocol):
    """Keys and values of the image tokens of one image (or one clip) in every decoder layer. Immutable."""

    @property
    def num_tokens(self) -> int:
        """P, the number of image tokens."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held by the keys and values."""
        ...


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Normalization of bytes as in a model's training: ``(byte * factor - mean) / std``, by channel."""

    factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def affine(self) -> tuple[list[float], list[float]]:
        """Return a and b, by channel, of the same as ``byte * a + b``."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return [self.factor / std for _, std in pairs], [-mean / std for mean, std in pairs]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options for choosing tokens. Names and meanings follow ``transformers.GenerationConfig``.

    Lengths count new tokens only, neither image tokens nor the prompt. The tokens that end a text are the checkpoint's.

    Attributes:
        max_new_tokens: A text ends here. Where nobody gives it, no more than the model has positions for.
        min_new_tokens: No text ends before.
        num_beams: 1: the likeliest token at every step, or samples.
        num_return_sequences: Texts for each prompt: samples, or beams, of which there must be as many.
        length_penalty: Of beams; above 0 favours long texts.
        length_penalty_form: Sums of log-probabilities are divided by ``length ** length_penalty`` ("transformers"), or
            by ``((5 + length) / 6) ** length_penalty``, where the length counts the prompt and no end ("paper").
        early_stopping: Of beams, as in transformers.
        do_sample: Draw tokens instead of searching for the likeliest.
        temperature: Of samples; below 1 draws likely tokens more often.
        top_k: Draw from so many of the likeliest tokens; 0: from all.
        top_p: Draw from the likeliest tokens that are together as probable as this.
        min_p: Draw from tokens at least this times as probable as the likeliest.
        seed: Of the draws; None: they differ from row to row and from call to call.
        repetition_penalty: Above 1 avoids tokens that the text has, its prompt included.
        no_repeat_ngram_size: Never write so many tokens twice in the same order; 0: off.
        ban_last_token: Never write the token before again, as Microsoft's search.
        bad_words_ids: Sequences of token ids that are not written.
        suppress_tokens: Token ids that are not written.
        begin_suppress_tokens: Token ids that no text begins with.
        forced_bos_token_id: The first token of a text without a prompt.
        forced_eos_token_id: The last token of a text that reaches ``max_new_tokens``.
        allowed_token_ids: Continuations, one of which must come out; None: any.
    """

    max_new_tokens: int = 50
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    length_penalty_form: Literal["transformers", "paper"] = "transformers"
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    ban_last_token: bool = False
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    allowed_token_ids: Sequence[Sequence[int]] | None = None


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated sequence: the new tokens only, the end-of-sequence token included when it was produced."""

    token_ids: list[int]
    token_logprobs: list[float]  # log-softmax of the model's own logits at each new token
    score: float  # sum of log-probabilities; beams: divided by the length penalty
    finish_reason: FinishReason


# Called on the caller's thread with (row, new token ids) after every step, the end-of-sequence token included: joined,
# they are the tokens of the row's best generation. With beams or several samples no token is final before the end: the
# row's calls are empty, one for each step, and the last one has all tokens. A row whose callback returns something
# false other than None (False, 0) ends as it stands, and is told no more; the others go on.
TokenCallback = Callable[[int, Sequence[int]], bool | None]
