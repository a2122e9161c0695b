"""``GitProcessor``: text and images to model inputs, and token ids to text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from gitfast.checkpoints import hub
from gitfast.compat.tokenizing import GitTokenizer
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.processor import Processor

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_FETCH = ("revision", "cache_dir", "local_files_only", "token")
# Options of transformers' from_pretrained that change nothing here.
_NO_MATTER = ("use_fast", "backend", "trust_remote_code", "force_download")


class BatchFeature(dict[str, Any]):
    """Model inputs by name, as attributes too; ``model(**inputs)``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *arguments: Any, **options: Any) -> BatchFeature:
        """Move and convert as ``torch.Tensor.to`` does; a dtype is for floating-point tensors alone."""
        dtypes = [a for a in (*arguments, *options.values()) if isinstance(a, torch.dtype)]
        others = [a for a in arguments if not isinstance(a, torch.dtype)]
        rest = {name: value for name, value in options.items() if not isinstance(value, torch.dtype)}
        moved = {}
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                value = value.to(*others, **rest) if others or rest else value
                value = value.to(dtypes[0]) if dtypes and value.is_floating_point() else value
            moved[name] = value
        return BatchFeature(moved)


class GitImageProcessor:
    """Images to pixels; ``settings`` are those of preprocessor_config.json."""

    model_input_names = ("pixel_values",)

    def __init__(self, settings: ImageProcessor) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        """Return a setting of preprocessor_config.json: ``size``, ``image_mean``, ..."""
        settings = self.__dict__.get("settings")
        if settings is None or name not in (values := settings.to_dict()):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return values[name]

    def to_dict(self) -> dict[str, Any]:
        return self.settings.to_dict()

    def preprocess(self, images: Any, return_tensors: str | None = None, **changes: Any) -> BatchFeature:
        """Do what a call does."""
        return self(images, return_tensors, **changes)

    def __call__(self, images: Any, return_tensors: str | None = None, **changes: Any) -> BatchFeature:
        """Turn an image or a list into pixel_values (B, 3, H, W); for video, frames of a clip or a list of clips.

        Args:
            images: Each a path, encoded bytes, an open file, a PIL image, a dict of these from ``datasets``, or a
                picture of bytes as an array or tensor (H, W, 3) or (3, H, W).
            return_tensors: "pt", "np", or None for an array.
            **changes: Settings of preprocessor_config.json for this call: do_resize, size, image_mean, ...
        """
        known = self.settings.to_dict()
        if unknown := sorted(changes.keys() - known.keys() - {"do_convert_rgb"}):
            raise TypeError(f"images: {', '.join(unknown)}: not known, or needs transformers installed")
        processor = ImageProcessor.from_dict({**known, **changes}) if changes else self.settings
        if processor.processor_type == "VideoMAEImageProcessor":
            pixels = np.stack([processor(clip) for clip in _clips(images)])
        else:
            pixels = processor(_pictures(images))
        return BatchFeature(pixel_values=_tensor(pixels, return_tensors))


class GitProcessor:
    """The tokenizer and the image processor of a checkpoint behind one call.

    Attributes:
        image_processor: A ``GitImageProcessor``.
        tokenizer: A ``GitTokenizer``.
        processor: gitfast's own ``Processor``.
    """

    def __init__(self, processor: Processor, folder: Path) -> None:
        self.processor = processor
        self.image_processor = GitImageProcessor(processor.image_processor)
        self.tokenizer = GitTokenizer.from_folder(folder, processor.tokenizer)
        self._folder = folder

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """Load by name; names and options as in ``gitfast.load``."""
        options = {name: value for name, value in options.items() if name not in _NO_MATTER and value is not None}
        if unknown := sorted(options.keys() - set(_FETCH)):
            raise TypeError(f"from_pretrained: {', '.join(unknown)}: not known, or needs transformers installed")
        checkpoint = hub.open_model(model, **options)
        return cls(Processor.from_folder(checkpoint.folder, checkpoint.config), checkpoint.folder)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files and preprocessor_config.json."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (self._folder / name).is_file() and (self._folder / name).resolve() != (path / name).resolve():
                shutil.copyfile(self._folder / name, path / name)
        settings = json.dumps(self.image_processor.to_dict(), indent=2)
        (path / "preprocessor_config.json").write_text(settings + "\n", encoding="utf-8")

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        videos: Sequence[Any] | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Make the inputs of ``GitForCausalLM``.

        Args:
            images: As in ``GitImageProcessor``.
            text: One text -> flat token ids, or with ``return_tensors`` (1, L); a list -> input_ids and attention_mask
                (R, L).
            videos: A list of clips, each anything that ``gitfast.load``'s models take -> (B, T, 3, H, W).
            return_tensors: "pt", "np", or None for lists of token ids (pixels are arrays then).
            **options: Options of ``GitTokenizer``: padding, truncation, max_length, add_special_tokens, ...; and of
                ``GitImageProcessor``: do_resize, size, ...

        Raises:
            ImageError, VideoError: an input cannot be read.
            ValueError: nothing to process, images with videos, or texts of different lengths without padding.
            TypeError: an option that neither has.
        """
        if images is None and text is None and videos is None:
            raise ValueError("images, text, videos: expected at least one of them")
        if images is not None and videos is not None:
            raise ValueError("images, videos: expected at most one of them")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors: expected 'pt', 'np' or None, got {return_tensors!r}")
        for_text = {name: value for name, value in options.items() if name in GitTokenizer.options}
        for_images = {name: value for name, value in options.items() if name not in for_text}
        if for_images and (images is None or for_images.keys() - self.image_processor.to_dict().keys()):
            raise TypeError(f"{', '.join(sorted(for_images))}: not known, or needs transformers installed")
        inputs = BatchFeature()
        if text is not None:
            inputs |= self.tokenizer(text, return_tensors=return_tensors, **for_text)
        if images is not None:
            inputs |= self.image_processor(images, return_tensors, **for_images)
        if videos is not None:
            inputs["pixel_values"] = _tensor(self.processor.clips(videos), return_tensors)
        return inputs

    @property
    def model_input_names(self) -> list[str]:
        """The names of the inputs that calls return."""
        return ["pixel_values", *self.tokenizer.model_input_names]

    def decode(self, token_ids: Any, *arguments: Any, **options: Any) -> Any:
        """Decode token ids: ``GitTokenizer.decode``."""
        return self.tokenizer.decode(token_ids, *arguments, **options)

    def batch_decode(self, sequences: Any, *arguments: Any, **options: Any) -> list[str]:
        """Decode rows of token ids: ``GitTokenizer.batch_decode``."""
        return self.tokenizer.batch_decode(sequences, *arguments, **options)


def _clips(images: Any) -> list[list[Any]]:
    """List clips given as one clip's frames or as a list of clips."""
    if not isinstance(images, (list, tuple)):
        images = list(images) if getattr(images, "ndim", 0) >= 4 else [images]
    nested = images and (isinstance(images[0], (list, tuple)) or getattr(images[0], "ndim", 0) >= 4)
    return [list(clip) for clip in images] if nested else [list(images)]


def _pictures(images: Any) -> Any:
    """Split a batch in one array or tensor into a list; leave the rest as it is."""
    return list(images) if getattr(images, "ndim", 0) == 4 else images


def _tensor(values: np.ndarray, return_tensors: str | None) -> Any:
    return torch.from_numpy(values) if return_tensors == "pt" else values
