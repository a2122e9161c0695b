"""The interface every engine implements, and the values that cross it.

An engine turns pixels into an immutable ``ImagePrefix`` (the keys and values of every decoder layer for the
image tokens), and a list of prefixes with one prompt each into token ids. Image tokens never attend to text,
so a prefix is exact for any prompt and may be shared: rows that pass the *same* prefix object share its memory
and its encoder run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gitfast.types import Generation, GenerationOptions, ImagePrefix, Normalization, TokenCallback


class Attend(Protocol):
    """Attention of every token of ``sequence`` to the image tokens, float32 (len, P).

    These are softmax weights over image tokens and text together, averaged over all heads and layers, each alike. The
    weights on text are left out, so that a row sums to the image's share of them.
    """

    def __call__(self, prefix: ImagePrefix, sequence: Sequence[int]) -> np.ndarray: ...


class Engine(Protocol):
    """What ``tasks`` needs of an engine. Calls are thread-safe.

    An engine may have two attributes more, each of which may be None:

    - ``normalization``: ``encode`` also takes pixels as bytes, uint8 (B, H, W, 3) or (B, T, H, W, 3), and normalises
      them so: a quarter of the bytes on their way to a device. ``normalization_of`` asks for it.
    - ``rows_at_once``, an int: ``generate`` takes any number of rows, decodes so many at once and goes on with the next
      as soon as one has ended, so that it is better given many. It computes on a device, and the host is free to read
      meanwhile. ``rows_at_once_of`` asks for it.

    ``gitfast info`` shows ``dtype``, ``nbytes`` (of weights) and ``plans()`` of engines that have them.
    """

    name: str

    def encode(self, pixel_values: np.ndarray, *, interpolate_positions: bool = False) -> Sequence[ImagePrefix]:
        """Images (B, 3, H, W) or clips (B, T, 3, H, W), float32, normalised -> one prefix per image or clip.

        H and W are the model's image_size; with ``interpolate_positions`` any size of at least a patch, rectangles
        too: the position embeddings are resized (bicubic), as the original does for question answering.
        """
        ...

    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
    ) -> list[list[Generation]]:
        """Row r continues ``prompts[r]`` (token ids, [CLS] first) on ``prefixes[r]``; None means text only.

        Returns ``num_return_sequences`` generations per row, best first. ``on_token`` needs ``num_beams`` and
        ``num_return_sequences`` 1: other tokens are final only at the end.
        """
        ...

    def score(self, prefixes: Sequence[ImagePrefix | None], sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of every token of ``sequences[r]`` but its first, given those before: float32 (len - 1,)."""
        ...


def normalization_of(engine: Engine) -> Normalization | None:
    """What ``engine`` does to pixels given as bytes; None: it does not take them."""
    return getattr(engine, "normalization", None)


def attend_of(engine: Engine) -> Attend | None:
    """How ``engine`` shows its attention; None: it keeps none."""
    return getattr(engine, "attend", None)


def rows_at_once_of(engine: Engine) -> int | None:
    """How many rows ``engine`` decodes at once of those it is given; None: all of them, to be bounded by the caller."""
    return getattr(engine, "rows_at_once", None)


@dataclass
class EngineStats:
    """Counters of the work an engine has done, for tests and ``gitfast info``."""

    encoded_images: int = 0  # images and clips
    prefill_tokens: int = 0
    decode_steps: int = 0
    extra: dict[str, int] = field(default_factory=dict)
