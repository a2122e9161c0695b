"""The workload of whole captions: a model whose captions never end, and images of noise."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gitfast.checkpoints.checkpoint import expected_tensors
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.hub import open_model
from gitfast.checkpoints.published import SHAPES, full_name
from gitfast.inputs.image import CLIP_MEAN, CLIP_STD
from gitfast.types import Normalization

NORMALIZATION = Normalization(factor=1 / 255, mean=CLIP_MEAN, std=CLIP_STD)
WEIGHT_STD = 0.02
NEVER = -1e4  # a logit that no other loses to; finite in float16 too


@dataclass(frozen=True)
class Workload:
    """A model by name, its shape, and its weights by their published names."""

    name: str
    config: GitConfig
    weights: Mapping[str, NDArray[np.floating]]
    random: bool

    @property
    def first_token(self) -> int:
        """Return the prompt of every caption: [CLS], or any token of a model without."""
        return self.config.bos_token_id or 0


def open_workload(model: str) -> Workload:
    """Open a published model's shape with random weights, by its name; anything else as ``load`` does.

    Raises:
        CheckpointError, ConfigError: there is no such model, or it is broken.
    """
    name = full_name(model)
    if name in SHAPES:
        return random_workload(name, SHAPES[name])
    checkpoint = open_model(model)
    weights = Endless(checkpoint.weights, checkpoint.config.eos_token_ids)
    return Workload(model, checkpoint.config, weights, random=False)


def random_workload(name: str, config: GitConfig) -> Workload:
    return Workload(name, config, Endless(RandomWeights(config), config.eos_token_ids), random=True)


class RandomWeights(Mapping[str, NDArray[np.floating]]):
    """float32 tensors of a model, made anew whenever it is read, the same each time.

    As a model is initialised before training: matrices and embeddings normal, norms 1, biases 0.
    """

    def __init__(self, config: GitConfig) -> None:
        self._shapes = expected_tensors(config)

    def __getitem__(self, name: str) -> NDArray[np.floating]:
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        if name.endswith(".weight") and len(shape) == 1:
            return np.ones(shape, np.float32)
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(math.prod(shape), np.float32)
        values *= WEIGHT_STD
        return values.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Endless(Mapping[str, NDArray[np.floating]]):
    """Weights of a model that never says that a text ends, so that all captions are equally long."""

    def __init__(self, weights: Mapping[str, NDArray[np.floating]], eos_token_ids: Sequence[int]) -> None:
        self._weights, self._eos = weights, list(eos_token_ids)
        self._kept: dict[str, NDArray[np.floating]] = {}  # several engines are made of them

    def __getitem__(self, name: str) -> NDArray[np.floating]:
        if name not in self._kept:
            values = self._weights[name]
            if name == "output.bias":
                values = values.astype(np.float32)  # a copy
                values[self._eos] = NEVER
            self._kept[name] = values
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@dataclass(frozen=True)
class Pixels:
    """Images or clips as a decoder of files gives them: uint8 (B, H, W, 3) or (B, T, H, W, 3)."""

    as_bytes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.as_bytes)

    def __getitem__(self, part: slice) -> Pixels:
        return Pixels(self.as_bytes[part])

    @cached_property
    def normalised(self) -> NDArray[np.float32]:
        """Return normalised float32 (B, 3, H, W) or (B, T, 3, H, W)."""
        scale, shift = (np.array(values, np.float32) for values in NORMALIZATION.affine())
        channels_last: NDArray[np.float32] = self.as_bytes * scale + shift
        return np.ascontiguousarray(np.moveaxis(channels_last, -1, -3))


def random_pixels(config: GitConfig, batch: int) -> Pixels:
    edge, frames = config.vision_config.image_size, config.num_image_with_embedding
    shape = (batch, *([frames] if frames else []), edge, edge, 3)
    return Pixels(np.random.default_rng(batch).integers(0, 256, shape, dtype=np.uint8))
