"""The values that cross layers: image prefixes, generation options, generated sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


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
    """How bytes become what a model was trained on: ``(byte * factor - mean) / std``, by channel."""

    factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def affine(self) -> tuple[list[float], list[float]]:
        """The same as ``byte * a + b``: a and b, by channel."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return [self.factor / std for _, std in pairs], [-mean / std for mean, std in pairs]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to choose tokens. Names and meanings follow ``transformers.GenerationConfig``.

    Lengths count new tokens only (neither image tokens nor the prompt). ``eos``, ``pad`` come from the checkpoint.
    """

    max_new_tokens: int = 50
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    length_penalty_form: Literal["transformers", "paper"] = "transformers"  # paper: ((5 + len) / 6) ** alpha
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    ban_last_token: bool = False  # Microsoft's search never repeats the token before
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    allowed_token_ids: Sequence[Sequence[int]] | None = None  # continuations allowed after the prompt (a trie)


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated sequence: the new tokens only, the end-of-sequence token included when it was produced."""

    token_ids: list[int]
    token_logprobs: list[float]  # log-softmax of the model's own logits at each new token
    score: float  # sum of log-probabilities; beams: divided by the length penalty
    finish_reason: FinishReason


# Called after every step with (row, new token ids), the end-of-sequence token too; returning False stops all rows.
TokenCallback = Callable[[int, Sequence[int]], bool | None]
