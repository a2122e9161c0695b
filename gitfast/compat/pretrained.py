"""``from_pretrained`` and ``save_pretrained`` of the transformers-shaped models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from gitfast.checkpoints import hub
from gitfast.checkpoints.checkpoint import read_tensors
from gitfast.checkpoints.config import GitConfig, read_json
from gitfast.torch_model import load_weights

DTYPES = ("float32", "float16", "bfloat16")


class PreTrained(nn.Module):
    """A module whose ``state_dict`` holds the tensors of a checkpoint below ``weights_prefix``, without it."""

    weights_prefix = ""
    config: Any

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", **options: Any
    ) -> Self:
        """A model by name, in evaluation mode: a whole checkpoint, or what ``save_pretrained`` of this class wrote.

        Args:
            model: As in ``gitfast.load``: a folder, a repository of the Hub, a short name, a LoRA adapter's folder.
            dtype: Of the parameters: a torch dtype or its name; "auto" and "float32" are float32.
            **options: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, as in ``gitfast.load``.

        Raises:
            CheckpointError, ConfigError: as ``gitfast.load``.
            ValueError: another dtype.
        """
        name = "float32" if dtype == "auto" else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype: expected 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        weights: Mapping[str, np.ndarray]
        folder = hub.resolve(model, **options)
        if cls.weights_prefix and _was_saved_by(cls, folder):
            made = cls(cls.config_from_dict(read_json(folder / "config.json")))
            weights = {name: tensor.load() for name, tensor in read_tensors(folder / "model.safetensors").items()}
        else:
            checkpoint = hub.open_model(folder, **options)
            made = cls(cls.config_of(checkpoint.config))
            start, whole = cls.weights_prefix, checkpoint.weights
            weights = {name[len(start) :]: whole[name] for name in whole if name.startswith(start)}
        load_weights(made, weights)
        return made.to(getattr(torch, name)).eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, in the dtype of the model, over those that are there.

        ``GitProcessor.save_pretrained`` writes the tokenizer and the preprocessor's settings.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        partial = path / "model.safetensors.partial"
        save_file(tensors, partial, {"format": "pt"})
        partial.replace(path / "model.safetensors")  # whoever finds the file finds all of it
        dtype = str(self.dtype).removeprefix("torch.")
        values = {**self.config_to_dict(), "architectures": [type(self).__name__], "dtype": dtype}
        (path / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def config_of(config: GitConfig) -> Any:
        """The part of a checkpoint's configuration that this class is built with."""
        return config

    @classmethod
    def config_from_dict(cls, values: Mapping[str, Any]) -> Any:
        """The configuration in a config.json that this class wrote."""
        return GitConfig.from_dict(values)

    def config_to_dict(self) -> dict[str, Any]:
        return self.config.to_dict()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Values in all parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)


def _was_saved_by(cls: type, folder: Path) -> bool:
    """Whether a folder holds this class's part of a model alone."""
    if not ((folder / "config.json").is_file() and (folder / "model.safetensors").is_file()):
        return False
    return read_json(folder / "config.json").get("architectures") == [cls.__name__]
