"""Outputs of the transformers-shaped classes: fields by name, by key and by index, without those that are None."""

from __future__ import annotations

import dataclasses
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gitfast.torch_model import KeysValues


class Cache(list[KeysValues]):
    """Keys and values of every decoder layer, each (R, H, image tokens + text tokens, head_dim)."""

    def __init__(self, layers: list[KeysValues], image_tokens: int) -> None:
        super().__init__(layers)
        self.image_tokens = image_tokens

    def get_seq_length(self) -> int:
        """Return the number of tokens held, those of the image included."""
        return self[0][0].shape[2] if self else 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return self  # a step makes a new one and writes to none


class Output:
    """Base of the output classes: reads like a dict of the fields that are not None."""

    def _found(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) is not None}

    def keys(self) -> KeysView[str]:
        return self._found().keys()

    def values(self) -> ValuesView[Any]:
        return self._found().values()

    def items(self) -> ItemsView[str, Any]:
        return self._found().items()

    def get(self, key: str, default: Any = None) -> Any:
        return self._found().get(key, default)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._found()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._found())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class ModelOutput(Output):
    """Output of ``GitModel`` and ``GitVisionModel``. S: P image and L text tokens, or the tokens of an image."""

    last_hidden_state: Tensor  # (R, S, D)
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None  # the embeddings and every layer, each (R, S, D)
    attentions: tuple[Tensor, ...] | None = None  # every layer, each (R, H, S, S + cached)


@dataclass
class CausalLMOutput(Output):
    """Output of ``GitForCausalLM``."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # (R, S, V), image rows included
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class GenerateOutput(Output):
    """Output of ``generate`` with ``return_dict_in_generate``; n sequences for each row, best first."""

    sequences: Tensor  # (R * n, longest), int64: prompt and new tokens, padded on the right
    sequences_scores: Tensor  # (R * n,): sum of log-probabilities, with beams divided by the length penalty
    token_logprobs: list[list[float]]  # for the new tokens, under the model itself
    engine: str  # "cpu" for the native one, or "reference"
