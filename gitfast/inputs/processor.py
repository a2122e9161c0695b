"""``Processor``: images and clips to pixels, text to token ids and back, with the settings of a checkpoint folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gitfast import arguments
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.files import is_there, read_json
from gitfast.errors import ArgumentError, CheckpointError, VideoError
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.limits import DEFAULT_LIMITS, Limits
from gitfast.inputs.pictures import ImageSource
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.inputs.video import Sampling, VideoSource, read_clip

if TYPE_CHECKING:
    import PIL.Image

Preprocess = Literal["hf", "original", "fast"]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """An ``ImageProcessor``, a ``Tokenizer`` and the number of frames of a clip.

    Attributes:
        image_processor: Decodes, resizes, crops and normalises.
        tokenizer: Text to token ids and back.
        num_frames: T, frames of one clip; None for a checkpoint of single images.
        limits: Limits on an input's cost, where a call does not say otherwise.
    """

    image_processor: ImageProcessor
    tokenizer: Tokenizer
    num_frames: int | None = None
    limits: Limits = DEFAULT_LIMITS

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        config: GitConfig,
        *,
        preprocess: Preprocess = "hf",
        limits: Limits = DEFAULT_LIMITS,
    ) -> Processor:
        """Read a checkpoint folder.

        Args:
            folder: Holds tokenizer.json or vocab.txt, and processor_config.json with an image_processor or
                preprocessor_config.json. Without either of the latter (training scripts often save none) the published
                checkpoint's settings for this configuration are taken, with a warning.
            config: The checkpoint's configuration.
            preprocess: "hf" as the folder says, "original" as Microsoft's code did (``ImageProcessor.original``),
                "fast" as the folder says, with JPEGs decoded reduced (``ImageProcessor.fast``).
            limits: Limits on an input's cost.

        Raises:
            CheckpointError: a file is missing or damaged; the message names it.
            ConfigError: a value of a file cannot be; the message names both.
            ArgumentError: ``preprocess`` or ``limits`` are none.
        """
        if not isinstance(limits, Limits):
            raise ArgumentError(f"limits: expected gitfast.Limits, got {arguments.shown(limits)}")
        arguments.choice("preprocess", preprocess, ("hf", "original", "fast"))
        folder = Path(folder)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}"
            )
        if preprocess == "original":
            image = ImageProcessor.original(config)
        else:
            image = dataclasses.replace(_read_image_settings(folder, config), fast=preprocess == "fast")
        if image.crop_size is None:
            image = dataclasses.replace(image, min_edge=config.vision_config.patch_size)
        return cls(
            image_processor=image, tokenizer=tokenizer, num_frames=config.num_image_with_embedding, limits=limits
        )

    def images(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        exif: bool = True,
        limits: Limits | None = None,
        normalize: bool = True,
    ) -> np.ndarray:
        """Turn images into float32 (B, 3, H, W); not normalised, uint8 (B, H, W, 3): see ``ImageProcessor``."""
        return self.image_processor(images, exif=exif, limits=limits or self.limits, normalize=normalize)

    def clips(
        self,
        videos: Sequence[VideoSource],
        *,
        num_frames: int | None = None,
        sampling: Sampling = "uniform",
        seed: int = 0,
        exif: bool = True,
        limits: Limits | None = None,
    ) -> np.ndarray:
        """Turn videos, each anything ``read_clip`` takes, into float32 (B, T, 3, H, W).

        Args:
            videos: The clips. A single one goes into a list: ``[frames]``, not ``frames``.
            num_frames: T; None takes the checkpoint's.
            sampling: As in ``read_clip``.
            seed: As in ``read_clip``.
            exif: As in ``read_clip``.
            limits: Limits on a video's cost; None: the processor's.

        Raises:
            VideoError: a video is bad (the message gives its index), or the clips end in different shapes.
        """
        if not videos:
            raise VideoError("videos: expected at least one, got none")
        frames = num_frames or self.num_frames or 1
        clips = []
        for index, video in enumerate(videos):
            try:
                clips.append(self.clip(video, frames, sampling=sampling, seed=seed, exif=exif, limits=limits))
            except VideoError as error:
                raise error if len(videos) == 1 else VideoError(f"videos[{index}]: {error}") from None
        if len({clip.shape for clip in clips}) > 1:
            raise VideoError(f"videos: expected clips of one shape, got {[clip.shape for clip in clips]}")
        return np.stack(clips)

    def clip(
        self,
        video: VideoSource,
        num_frames: int,
        *,
        normalize: bool = True,
        limits: Limits | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Turn one video into float32 (T, 3, H, W); not normalised, uint8 (T, H, W, 3). Options as in ``read_clip``."""

        def prepare(picture: PIL.Image.Image) -> np.ndarray:
            return self.image_processor.preprocess(picture, normalize=normalize)

        frames = read_clip(video, prepare, num_frames=num_frames, limits=limits or self.limits, **options)
        if len({frame.shape for frame in frames}) > 1:
            sizes = [frame.shape[1:] if normalize else frame.shape[:2] for frame in frames]
            raise VideoError(f"frames end in different sizes: {sizes}")
        return np.stack(frames)


def _read_image_settings(folder: Path, config: GitConfig) -> ImageProcessor:
    """Read the settings from the file that transformers takes: one that has them nested comes first."""
    nested, plain = folder / "processor_config.json", folder / "preprocessor_config.json"
    if is_there(nested) and isinstance(read_json(nested).get("image_processor"), Mapping):
        return ImageProcessor.from_file(nested)
    if is_there(plain):
        return ImageProcessor.from_file(plain)
    warnings.warn(f"{folder}: no preprocessor_config.json; taking the settings of its configuration", stacklevel=3)
    return ImageProcessor.for_config(config)
