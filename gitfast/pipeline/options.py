"""Keyword arguments of the tasks to ``GenerationOptions``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from gitfast.inputs.tokenizer import Tokenizer
from gitfast.types import GenerationOptions

# The decoding behind the published scores; the default is greedy, as people use the Hugging Face checkpoints.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"num_beams": 4, "length_penalty": 0.6, "length_penalty_form": "paper"},
}
_FIELDS = {f.name for f in dataclasses.fields(GenerationOptions)}
_EXTRA = {"preset", "allowed_texts"}


def make_options(values: Mapping[str, Any], tokenizer: Tokenizer, *, room: int) -> GenerationOptions:
    """Options from keyword arguments: the fields of ``GenerationOptions``, and two more.

    Args:
        values: ``preset="paper"`` sets beams and length penalty, unless they are given too.
            ``allowed_texts`` is a list of texts, one of which must come out.
        tokenizer: Encodes the allowed texts.
        room: Text positions left behind the longest prompt; the default ``max_new_tokens`` is not larger.

    Raises:
        TypeError: an option of another name; the message names it and the nearest one there is.
        ValueError: an unknown preset, or no allowed texts.
    """
    for name in values:
        if name not in _FIELDS | _EXTRA:
            near = difflib.get_close_matches(name, _FIELDS | _EXTRA, n=1)
            raise TypeError(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    fields = {name: value for name, value in values.items() if name in _FIELDS}
    preset = values.get("preset")
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(map(repr, PRESETS))}, got {preset!r}")
        fields = PRESETS[preset] | fields
    texts = values.get("allowed_texts")
    if texts is not None:
        if isinstance(texts, str) or not texts:
            raise ValueError(f"allowed_texts: expected a list of texts, got {texts!r}")
        fields["allowed_token_ids"] = [tokenizer.encode(text) for text in texts]
    fields.setdefault("max_new_tokens", max(1, min(GenerationOptions.max_new_tokens, room)))
    return GenerationOptions(**fields)
