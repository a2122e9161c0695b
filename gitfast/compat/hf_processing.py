"""``GitProcessor`` where transformers is installed: its own, taking every input and name that gitfast takes."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
import transformers

from gitfast.checkpoints import hub
from gitfast.checkpoints.adapter import is_adapter
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.files import read_json
from gitfast.checkpoints.generation import read_generation
from gitfast.errors import ArgumentError
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.pictures import load_image
from gitfast.inputs.tokenizer_files import read_folder
from gitfast.inputs.video import load_clip

_FETCH = ("revision", "cache_dir", "local_files_only", "token")
_SETTINGS = ("preprocessor_config.json", "processor_config.json")


class GitProcessor(transformers.GitProcessor):
    """``transformers.GitProcessor``: ``image_processor`` and ``tokenizer`` are transformers' own.

    Attributes:
        num_frames: T, frames of one clip that ``videos`` become; None: a model of single images.
    """

    num_frames: int | None = None

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *, backend: str = "pil", **options: Any
    ) -> GitProcessor:
        """Load by any name that ``gitfast.load`` takes.

        Args:
            pretrained_model_name_or_path: A model; without preprocessor_config.json (training scripts often save none)
                the published checkpoint's settings for its configuration are taken, with a warning.
            backend: The backend of transformers' image processor: "pil" gives the pixels that gitfast computes.
            **options: As in ``gitfast.load``, others go to transformers' tokenizer and image processor.
        """
        options.pop("use_fast", None)  # transformers 5 has one tokenizer, and ``backend`` chooses the image processor
        fetch = {name: options.pop(name) for name in _FETCH if name in options}
        folder = hub.resolve(pretrained_model_name_or_path, **fetch)
        if folder.is_file():
            folder = folder.parent
        if is_adapter(folder) and not any((folder / name).is_file() for name in _SETTINGS):
            folder = hub.open_model(folder).folder
        config = GitConfig()
        if (folder / "config.json").is_file():  # whose token ids may be stale: generation_config.json comes first
            config = GitConfig.from_dict(read_generation(folder, read_json(folder / "config.json"))[0])
        read_folder(folder)  # the library runs whatever tokenizer.json asks for: only what gitfast takes, too
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        if any((folder / name).is_file() for name in _SETTINGS):
            images = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend, **options)
        else:
            warnings.warn(f"{folder}: no preprocessor_config.json; taking the settings of its model", stacklevel=2)
            settings = ImageProcessor.for_config(config).to_dict()
            kind = f"{settings['image_processor_type']}Pil"
            images = getattr(transformers, kind)(**settings)
        made = cls(images, tokenizer)
        made.num_frames = config.num_image_with_embedding
        return made

    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **options: Any) -> Any:
        """Save as transformers does, and preprocessor_config.json too, which older versions read."""
        written = super().save_pretrained(save_directory, *arguments, **options)
        self.image_processor.save_pretrained(save_directory)
        return written

    def __call__(self, images: Any = None, text: Any = None, *, videos: Any = None, **options: Any) -> Any:
        """Process as transformers does, from every input that gitfast reads.

        Args:
            images: A picture or a list, each a path, encoded bytes, an open file, a PIL image, a dict of these from
                ``datasets``, an array or tensor (H, W, 3) or (3, H, W) -> pixel_values (B, 3, H, W). With a video
                checkpoint's processor a list is the frames of one clip -> (1, T, 3, H, W).
            text: One text -> flat token ids; a list -> a list of them.
            videos: A list of clips, each anything that ``gitfast.load``'s models take -> (B, T, 3, H, W).
            **options: For transformers' tokenizer and image processor: padding, truncation, max_length, do_resize, ...

        Raises:
            ImageError, VideoError: an input cannot be read.
            ValueError: nothing to process, or images with videos.
        """
        if images is None and text is None and videos is None:
            raise ValueError("images, text, videos: expected at least one of them")
        if images is not None and videos is not None:
            raise ValueError("images, videos: expected at most one of them")
        for name, value in (("images", images), ("text", text), ("videos", videos)):
            if isinstance(value, (list, tuple)) and not value:
                raise ArgumentError(f"{name}: expected at least one, got an empty list")
        clips = None if videos is None else [load_clip(video, num_frames=self.num_frames or 1) for video in videos]
        if clips is None:
            if options.get("do_rescale", self.image_processor.do_rescale):
                _warn_of_fractions(images)
            return super().__call__(images=_pictures(images), text=text, **options)
        names = self.image_processor.valid_kwargs.__annotations__
        settings = {name: value for name, value in options.items() if name in names and name != "return_tensors"}
        pixels = [self.image_processor(clip, return_tensors="np", **settings)["pixel_values"] for clip in clips]
        frames = np.stack([clip.reshape(-1, *clip.shape[-3:]) for clip in pixels])
        rest = {name: value for name, value in options.items() if name not in settings}
        found = super().__call__(text=text, **rest) if text is not None else transformers.BatchFeature({})
        tensors = options.get("return_tensors")
        found["pixel_values"] = torch.from_numpy(frames) if tensors == "pt" else frames
        return found


def _warn_of_fractions(images: Any) -> None:
    """Warn of arrays that the division by 255 makes almost black."""
    first = images[0] if isinstance(images, (list, tuple)) and images else images
    if isinstance(first, (list, tuple)):
        _warn_of_fractions(first)
    elif isinstance(first, (np.ndarray, torch.Tensor)) and "float" in str(first.dtype) and 0 < first.max() <= 1:
        warnings.warn(
            "images: numbers from 0 to 1 are divided by 255; pass do_rescale=False to keep them", stacklevel=3
        )


def _pictures(images: Any) -> Any:
    """Read inputs as RGB pictures; leave arrays and tensors of other numbers to transformers."""
    if isinstance(images, (list, tuple)):
        return [_pictures(image) for image in images]
    if getattr(images, "ndim", 0) >= 4:
        return [_pictures(image) for image in images]
    if images is None or str(getattr(images, "dtype", "uint8")).removeprefix("torch.") not in ("uint8", "uint16"):
        return images
    return load_image(images)
