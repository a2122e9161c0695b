"""Engines that only record what they are given."""

from __future__ import annotations

import weakref

import numpy as np

from gitfast.engines.base import Engine
from gitfast.types import Generation


class FakePrefix:
    num_tokens = 1
    nbytes = 4

    def __init__(self, pixels: np.ndarray) -> None:
        self.mean = float(pixels.mean())


class FakeEngine(Engine):
    """Writes tokens that say which image they came from."""

    name = "fake"

    def __init__(self) -> None:
        self.encoded: list[tuple[int, ...]] = []
        self.rows: list[int] = []
        self.prefixes: weakref.WeakSet[FakePrefix] = weakref.WeakSet()
        self.most_prefixes = 0

    def encode(self, pixel_values, *, interpolate_positions=False, cancel=None):
        self.encoded.append(pixel_values.shape)
        prefixes = [FakePrefix(pixels) for pixels in pixel_values]
        self.prefixes.update(prefixes)
        self.most_prefixes = max(self.most_prefixes, len(self.prefixes))
        return prefixes

    def generate(self, prefixes, prompts, options, on_token=None, *, cancel=None):
        self.rows.append(len(prompts))
        return [
            [Generation(token_ids=[5], token_logprobs=[-1.0], score=prefix.mean, finish_reason="stop")]
            for prefix in prefixes
        ]

    def score(self, prefixes, sequences, *, cancel=None):
        self.rows.append(len(sequences))
        return [np.array(ids[1:], np.float32) for ids in sequences]


class RefillingEngine(FakeEngine):
    """Takes any number of rows."""

    def __init__(self, rows_at_once: int) -> None:
        super().__init__()
        self.rows_at_once = rows_at_once
