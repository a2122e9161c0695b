"""What a task is given: one input or many, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gitfast.errors import GitfastError, ImageError
from gitfast.inputs.image import map_in_threads
from gitfast.inputs.processor import Processor
from gitfast.inputs.video import Sampling
from gitfast.types import ImagePrefix


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """Which frames of a video make a clip; see ``gitfast.inputs.video.sample_indices``."""

    num_frames: int | None = None  # None: the checkpoint's
    sampling: Sampling = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames: expected at least 1, got {self.num_frames}")


def as_list(inputs: Any, *, video: bool = False) -> tuple[list[Any], bool]:
    """(inputs as a list, whether it was one). PIL images or arrays (H, W, 3) are together the frames of one clip."""
    if not isinstance(inputs, (list, tuple)) or (video and inputs and all(map(_is_frame, inputs))):
        return [inputs], True
    return list(inputs), False


def as_iterable(inputs: Iterable[Any], name: str) -> Iterable[Any]:
    """The inputs themselves; TypeError for one input, even if something could be made of its parts."""
    if isinstance(inputs, (str, bytes, bytearray, memoryview, np.ndarray)) or hasattr(inputs, "read"):
        raise TypeError(f"{name}: expected an iterable of inputs, got one of type {type(inputs).__name__}")
    return inputs


def _is_frame(value: Any) -> bool:
    return hasattr(value, "convert") or (isinstance(value, np.ndarray) and value.ndim == 3)


def read_pixels(
    processor: Processor, sources: Sequence[Any], clips: ClipSampling, *, normalize: bool = True
) -> list[np.ndarray | ImagePrefix | GitfastError]:
    """Pixels (3, H, W) of images or (T, 3, H, W) of clips; prefixes stay, bad sources give their error.

    Not normalised, pixels are bytes: uint8 (H, W, 3) or (T, H, W, 3).
    """

    def read(source: Any) -> np.ndarray | ImagePrefix | GitfastError:
        if isinstance(source, ImagePrefix):
            return source
        try:
            if processor.num_frames is None:
                return processor.images([source], normalize=normalize)[0]
            frames = clips.num_frames or processor.num_frames
            return processor.clip(source, frames, normalize=normalize, sampling=clips.sampling, seed=clips.seed)
        except ImageError as error:
            return error

    # PIL images and file objects have state, and one may be listed twice: not to be read by two threads.
    stateless = (str, os.PathLike, bytes, np.ndarray)
    if all(isinstance(source, stateless) for source in sources):
        return map_in_threads(read, sources)
    return [read(source) for source in sources]
