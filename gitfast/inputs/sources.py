"""Inputs of a task: one or many, images or clips, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gitfast import arguments
from gitfast.errors import ArgumentError, GitfastError, ImageError
from gitfast.inputs.files import describe_source, is_stateless, open_encoded, read_encoded
from gitfast.inputs.limits import DEFAULT_LIMITS
from gitfast.inputs.pictures import detach
from gitfast.inputs.processor import Processor
from gitfast.inputs.video import Sampling, looks_like_video
from gitfast.types import ImagePrefix

_NO_CLIPS = "the model reads single images, not clips: pass images, or load a video model such as git-base-vatex"


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """The choice of the frames of a clip; see ``gitfast.inputs.video.sample_indices``."""

    num_frames: int | None = None  # None: the checkpoint's
    sampling: Sampling = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        limit = DEFAULT_LIMITS.max_clip_frames
        if self.num_frames is not None:
            number = arguments.integer("num_frames", self.num_frames, minimum=1)
            if number > limit:
                raise ArgumentError(f"num_frames: expected at most {limit}, got {arguments.shown(number)}")
            object.__setattr__(self, "num_frames", number)
        object.__setattr__(self, "seed", arguments.integer("sampling_seed", self.seed))
        if callable(self.sampling) or (isinstance(self.sampling, str) and self.sampling in ("uniform", "hf")):
            return
        listed = isinstance(self.sampling, Sequence) and not isinstance(self.sampling, str)
        if not listed and not (isinstance(self.sampling, np.ndarray) and self.sampling.ndim == 1):
            raise ArgumentError(
                f"sampling: expected 'uniform', 'hf', indices or a function, got {arguments.shown(self.sampling)}"
            )
        if len(self.sampling) > limit:
            raise ArgumentError(f"sampling: expected at most {limit} indices, got {len(self.sampling)}")
        indices = [arguments.integer(f"sampling[{i}]", index) for i, index in enumerate(self.sampling)]
        object.__setattr__(self, "sampling", indices)


def as_list(inputs: Any, *, video: bool = False) -> tuple[list[Any], bool]:
    """Return the inputs as a list, and whether there was one: for video, PIL images or arrays (H, W, 3) are a clip."""
    if not isinstance(inputs, (list, tuple)) or (video and inputs and all(map(_is_frame, inputs))):
        return [inputs], True
    return list(inputs), False


def as_iterable(inputs: Iterable[Any], name: str) -> Iterable[Any]:
    """Return the inputs themselves; refuse one input, even if something could be made of its parts.

    Raises:
        ArgumentError: the inputs are one, or not iterable.
    """
    single = isinstance(inputs, (str, bytes, bytearray, memoryview, np.ndarray)) or hasattr(inputs, "read")
    if single or not isinstance(inputs, Iterable):
        raise ArgumentError(f"{name}: expected an iterable of inputs, got one of type {type(inputs).__name__}")
    return inputs


def read_input(processor: Processor, source: Any, clips: ClipSampling, *, normalize: bool = True) -> np.ndarray:
    """Read one image as pixels (3, H, W), or for a video model one clip as pixels (T, 3, H, W).

    Not normalised, pixels are bytes: uint8 (H, W, 3) or (T, H, W, 3).

    Raises:
        ImageError: the source cannot be read, or is of the other kind.
    """
    if processor.num_frames is None:
        return _read_image(processor, source, normalize)
    frames = clips.num_frames or processor.num_frames
    return processor.clip(
        source, frames, normalize=normalize, sampling=clips.sampling, seed=clips.seed, repeat_stills=False
    )


def read_bytes(source: str | os.PathLike[str] | bytes, max_bytes: int) -> bytes:
    """Read the bytes of an encoded image.

    Raises:
        ImageError: it cannot be read, or has more than ``max_bytes``.
    """
    name = describe_source(source)
    file = open_encoded(source, name)
    with file:
        return read_encoded(file, name, max_bytes, "max_image_bytes")


def detached(processor: Processor, source: Any) -> Any:
    """Return the source so that threads may read it beside others, its error if it cannot be read, or None.

    None is for files and PIL images given to a video model: their frames are sought, so they are read one by one.
    """
    if isinstance(source, (ImagePrefix, GitfastError)) or is_stateless(source) or hasattr(source, "dtype"):
        return source
    if processor.num_frames is not None or isinstance(source, (list, tuple)):
        return None
    try:
        return detach(source, processor.limits)
    except ImageError as error:
        return error


def _read_image(processor: Processor, source: Any, normalize: bool) -> np.ndarray:
    if isinstance(source, (list, tuple)):
        raise ImageError(f"a list of {len(source)}: {_NO_CLIPS}")
    if getattr(source, "ndim", 0) == 4:
        raise ImageError(f"image array of shape {tuple(source.shape)}: {_NO_CLIPS}")
    try:
        return processor.images([source], normalize=normalize)[0]
    except ImageError:
        if looks_like_video(source):
            raise ImageError(f"{describe_source(source)}: a video; {_NO_CLIPS}") from None
        raise


def _is_frame(value: Any) -> bool:
    return hasattr(value, "convert") or getattr(value, "ndim", 0) == 3
