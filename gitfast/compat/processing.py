"""``GitProcessor``: text and images to model inputs, and token ids to text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from gitfast.checkpoints import hub
from gitfast.inputs.processor import Processor

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")


class BatchFeature(dict[str, Any]):
    """Model inputs by name, as attributes too; ``model(**inputs)``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, target: Any) -> BatchFeature:
        """Move to a device; or convert floating-point tensors to a dtype."""
        moved = {}
        for name, value in self.items():
            cast = not isinstance(target, torch.dtype) or value.is_floating_point()
            moved[name] = value.to(target) if cast else value
        return BatchFeature(moved)


class GitProcessor:
    """The tokenizer and the image processor of a checkpoint behind one call."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        self.processor = processor
        self._folder = folder

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """By name; names and options as in ``gitfast.load``."""
        checkpoint = hub.open_model(model, **options)
        return cls(Processor.from_folder(checkpoint.folder, checkpoint.config), checkpoint.folder)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files and preprocessor_config.json."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (self._folder / name).is_file() and (self._folder / name).resolve() != (path / name).resolve():
                shutil.copyfile(self._folder / name, path / name)
        settings = json.dumps(self.processor.image_processor.to_dict(), indent=2)
        (path / "preprocessor_config.json").write_text(settings + "\n", encoding="utf-8")

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        videos: Sequence[Any] | None = None,
        add_special_tokens: bool = True,
        padding: bool = False,
        padding_side: Literal["left", "right"] = "right",
        return_tensors: Literal["pt", "np"] | None = None,
    ) -> BatchFeature:
        """Inputs of ``GitForCausalLM``.

        Args:
            images: One image or a list -> pixel_values (B, 3, H, W).
            text: One text or a list -> input_ids and attention_mask (R, L).
            videos: A list of clips, each anything ``gitfast.load``'s models take -> pixel_values (B, T, 3, H, W).
            add_special_tokens: ``[CLS]`` before and ``[SEP]`` after each text, as for training; a question that is to
                be answered has no ``[SEP]``: pass ``[processor.processor.tokenizer.prompt(question)]`` as input_ids.
            padding: Fill shorter texts up to the longest.
            padding_side: Where; generation is right with either.
            return_tensors: "pt", "np", or None for lists of token ids (pixels are arrays then).

        Raises:
            ImageError, VideoError: an input cannot be read.
            ValueError: nothing to process, images with videos, or texts of different lengths without padding.
        """
        if images is None and text is None and videos is None:
            raise ValueError("images, text, videos: expected at least one of them")
        if images is not None and videos is not None:
            raise ValueError("images, videos: expected at most one of them")
        inputs = BatchFeature()
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            ids, mask = self._tokenize(texts, add_special_tokens, padding, padding_side)
            if return_tensors is not None and len(set(map(len, ids))) > 1:
                raise ValueError(f"text: lengths {sorted({len(row) for row in ids})} differ; padding=True fills them")
            inputs |= {"input_ids": ids, "attention_mask": mask}
        if images is not None:
            inputs["pixel_values"] = self.processor.images(images)
        if videos is not None:
            inputs["pixel_values"] = self.processor.clips(videos)
        if return_tensors == "pt":
            return BatchFeature({name: torch.as_tensor(value) for name, value in inputs.items()})
        if return_tensors == "np":
            return BatchFeature({name: np.asarray(value) for name, value in inputs.items()})
        if return_tensors is not None:
            raise ValueError(f"return_tensors: expected 'pt', 'np' or None, got {return_tensors!r}")
        return inputs

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of one row of token ids."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        return self.processor.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of rows of token ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def _tokenize(
        self, texts: Sequence[str], special: bool, padding: bool, side: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        if side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {side!r}")
        tokenizer = self.processor.tokenizer
        rows = [tokenizer.encode(text) for text in texts]
        if special:
            rows = [[tokenizer.cls_id, *row, tokenizer.sep_id] for row in rows]
        longest = max(map(len, rows), default=0)
        ids, mask = [], []
        for row in rows:
            fill = [0] * (longest - len(row)) if padding else []
            pads, ones = [tokenizer.pad_id] * len(fill), [1] * len(row)
            ids.append([*pads, *row] if side == "left" else [*row, *pads])
            mask.append([*fill, *ones] if side == "left" else [*ones, *fill])
        return ids, mask
