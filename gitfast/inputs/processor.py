"""What a checkpoint folder says about its inputs: pixels from images and clips, token ids from text, text from ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gitfast.checkpoints.config import GitConfig
from gitfast.errors import CheckpointError, VideoError
from gitfast.inputs import image as _image
from gitfast.inputs import video as _video
from gitfast.inputs.image import ImageLimits, ImageProcessor, ImageSource, map_in_threads
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.inputs.video import Sampling, VideoLimits, VideoSource

Preprocess = Literal["hf", "original"]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """An ``ImageProcessor``, a ``Tokenizer`` and the number of frames of a clip.

    Attributes:
        num_frames: T, frames of one clip; None for a checkpoint of single images.
    """

    image_processor: ImageProcessor
    tokenizer: Tokenizer
    num_frames: int | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, config: GitConfig, *, preprocess: Preprocess = "hf") -> Processor:
        """Read a checkpoint folder.

        Args:
            folder: Holds tokenizer.json or vocab.txt, and preprocessor_config.json or processor_config.json. Without
                either of the latter (training scripts often save none) the published checkpoint's settings for this
                configuration are taken, with a warning.
            config: The checkpoint's configuration.
            preprocess: "hf" as the folder says, "original" as Microsoft's code did (``ImageProcessor.original``).

        Raises:
            CheckpointError, ConfigError: a file is missing or damaged; the message names it.
        """
        folder = Path(folder)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}"
            )
        if preprocess == "original":
            image = ImageProcessor.original(config)
        elif preprocess == "hf":
            image = _read_image_settings(folder, config)
        else:
            raise ValueError(f"preprocess: expected 'hf' or 'original', got {preprocess!r}")
        return cls(image_processor=image, tokenizer=tokenizer, num_frames=config.num_image_with_embedding)

    def images(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        exif: bool = True,
        limits: ImageLimits = _image.DEFAULT_LIMITS,
        normalize: bool = True,
    ) -> np.ndarray:
        """Images -> float32 (B, 3, H, W); not normalised, uint8 (B, H, W, 3). See ``ImageProcessor.__call__``."""
        return self.image_processor(images, exif=exif, limits=limits, normalize=normalize)

    def clips(
        self,
        videos: Sequence[VideoSource],
        *,
        num_frames: int | None = None,
        sampling: Sampling = "uniform",
        seed: int = 0,
        exif: bool = True,
        limits: VideoLimits = _video.DEFAULT_LIMITS,
    ) -> np.ndarray:
        """Videos, each anything ``load_clip`` takes -> float32 (B, T, 3, H, W).

        Args:
            videos: The clips. A single one goes into a list: ``[frames]``, not ``frames``.
            num_frames: T; None takes the checkpoint's.
            sampling, seed, exif, limits: As in ``load_clip``.

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

    def clip(self, video: VideoSource, num_frames: int, *, normalize: bool = True, **options: Any) -> np.ndarray:
        """One video -> float32 (T, 3, H, W); not normalised, uint8 (T, H, W, 3). Options as in ``load_clip``."""
        pictures = _video.load_clip(video, num_frames=num_frames, **options)
        frames = map_in_threads(lambda picture: self.image_processor.preprocess(picture, normalize=normalize), pictures)
        if len({frame.shape for frame in frames}) > 1:
            sizes = [frame.shape[1:] if normalize else frame.shape[:2] for frame in frames]
            raise VideoError(f"frames end in different sizes: {sizes}")
        return np.stack(frames)


def _read_image_settings(folder: Path, config: GitConfig) -> ImageProcessor:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            return ImageProcessor.from_file(folder / name)
    warnings.warn(f"{folder}: no preprocessor_config.json; taking the settings of its configuration", stacklevel=3)
    return ImageProcessor.for_config(config)
