"""The interface every engine implements, and the values that cross it.

An engine turns pixels into an immutable ``ImagePrefix`` (the keys and values of every decoder layer for the
image tokens), and a list of prefixes with one prompt each into token ids. Image tokens never attend to text,
so a prefix is exact for any prompt and may be shared: rows that pass the *same* prefix object share its memory
and its encoder run.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gitfast.errors import EngineError
from gitfast.types import CancelToken, Generation, GenerationOptions, ImagePrefix, Normalization, TokenCallback


class Engine(abc.ABC):
    """An engine that computes a model. Calls are thread-safe.

    Attributes:
        name: The engine's name in ``gitfast.load`` and in messages.
        normalization: Applied by ``encode`` to pixels given as bytes, uint8 (B, H, W, 3) or (B, T, H, W, 3): a quarter
            of the bytes on their way to a device. None: it takes floats only.
        rows_at_once: The number of rows ``generate`` decodes at once of those given; it goes on with the next as soon
            as one has ended, so it is better given many. It computes on a device, and the host is free to read
            meanwhile. None: all rows of a call at once, to be bounded by the caller.
        attends: True if ``attend`` shows the attention of text to the image.
        dtype: The dtype in which weights are stored.
        nbytes: Bytes of weights; None: not known.
        stats: The work done so far, if the engine counts it.
    """

    name: ClassVar[str]
    normalization: Normalization | None = None
    rows_at_once: int | None = None
    attends: bool = False
    stats: EngineStats

    @property
    def dtype(self) -> str:
        return "float32"

    @property
    def nbytes(self) -> int | None:
        return None

    def plans(self) -> Sequence[Any]:
        """List the plans kept for encoding batches of one size and kind, the last used last."""
        return []

    @abc.abstractmethod
    def encode(
        self, pixel_values: np.ndarray, *, interpolate_positions: bool = False, cancel: CancelToken | None = None
    ) -> Sequence[ImagePrefix]:
        """Encode images (B, 3, H, W) or clips (B, T, 3, H, W), float32, normalised: one prefix each.

        H and W are the model's image_size; with ``interpolate_positions`` any size of at least a patch, rectangles
        too: the position embeddings are resized (bicubic), as the original does for question answering.

        Raises:
            CancelledError, DeadlineError: by ``cancel``, as in all calls.
        """

    @abc.abstractmethod
    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
        *,
        cancel: CancelToken | None = None,
    ) -> list[list[Generation]]:
        """Continue ``prompts[r]`` (token ids, [CLS] first) on ``prefixes[r]``; None means text only.

        Returns ``num_return_sequences`` generations per row, best first. ``on_token``: see ``TokenCallback``.
        """

    @abc.abstractmethod
    def score(
        self,
        prefixes: Sequence[ImagePrefix | None],
        sequences: Sequence[Sequence[int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[np.ndarray]:
        """Compute the log-probability of every token of ``sequences[r]`` but its first: float32 (len - 1,)."""

    def attend(self, prefix: ImagePrefix, sequence: Sequence[int]) -> np.ndarray:
        """Compute the attention of every token of ``sequence`` to the image tokens, float32 (len, P).

        These are softmax weights over image tokens and text together, averaged over all heads and layers, each alike.
        The weights on text are left out, so that a row sums to the image's share of them.

        Raises:
            EngineError: the engine keeps no attention (``attends``).
        """
        raise EngineError(f"{self.name} engine: keeps no attention to show")

    def decoding(self) -> Decoding:
        """Make an empty running batch: sequences join and leave between steps.

        Raises:
            EngineError: the engine decodes whole calls only.
        """
        raise EngineError(f"{self.name} engine: has no running batch; use generate")


@dataclass(frozen=True, kw_only=True)
class DecodingEvent:
    """The effect of a step on a sequence."""

    handle: int
    token_ids: list[int]  # new and final; none with beams or several samples, whose tokens are final at the end
    generations: list[Generation] | None = None  # at the end, best first; the handle is no longer valid
    error: Exception | None = None  # or the error that ended the sequence

    @property
    def done(self) -> bool:
        return self.generations is not None or self.error is not None


class Decoding(abc.ABC):
    """Sequences that share every step, each with its own prefix, prompt, options and seed.

    A sequence's result does not depend on the others. Memory for its longest result is taken when it is added.
    Threads take turns.
    """

    @abc.abstractmethod
    def add(self, prefix: ImagePrefix | None, prompt: Sequence[int], options: GenerationOptions) -> int:
        """Let a sequence join at the next step; return the handle of its events.

        Raises:
            ValueError, TypeError: an argument or option that cannot be; the message names it.
            MemoryError: there is no room for it; the others go on.
        """

    @abc.abstractmethod
    def cancel(self, handle: int) -> bool:
        """Let a sequence leave without an event; return False when it has ended already."""

    @abc.abstractmethod
    def step(self) -> list[DecodingEvent]:
        """Run one step of every sequence; return an event for each, or None where there are no sequences."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Count the sequences that have not ended."""


@dataclass
class EngineStats:
    """Counters of the work an engine has done, for tests and ``gitfast info``."""

    encoded_images: int = 0  # images and clips
    prefill_tokens: int = 0
    decode_steps: int = 0  # all calls together
    decode_rows: int | None = None  # in those steps; divided by the steps, the mean rows of one. None: not counted
    step_seconds: float | None = None
    encode_seconds: float | None = None
    persistent_searches: int = 0  # calls whose steps one kernel on the device took
