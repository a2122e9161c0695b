"""``from_pretrained`` and ``save_pretrained`` of the transformers-shaped models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from gitfast import hub
from gitfast.checkpoint import Checkpoint
from gitfast.config import GitConfig
from gitfast.convert import DTYPES, save_checkpoint
from gitfast.engines.reference import load_weights


class PreTrained(nn.Module):
    """A module whose ``state_dict`` holds the tensors of a checkpoint below ``weights_prefix``, without it."""

    weights_prefix = ""
    config: Any

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", **options: Any
    ) -> Self:
        """A model by name, in evaluation mode.

        Args:
            model: As in ``gitfast.load``: a folder, a repository of the Hub, a short name, a LoRA adapter's folder.
            dtype: Of the parameters: a torch dtype or its name; "auto" and "float32" are float32.
            **options: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, as in ``gitfast.load``.

        Raises:
            CheckpointError, ConfigError: as ``gitfast.load``.
        """
        checkpoint = hub.open_model(model, **options)
        made = cls(cls.config_of(checkpoint.config))
        weights = checkpoint.weights
        start = cls.weights_prefix
        load_weights(made, {name[len(start) :]: weights[name] for name in weights if name.startswith(start)})
        name = "float32" if dtype == "auto" else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype: expected 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        return made.to(getattr(torch, name)).eval()

    @staticmethod
    def config_of(config: GitConfig) -> Any:
        """The part of a checkpoint's configuration that this class is built with."""
        return config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Values in all parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)


def save_model(model: PreTrained, folder: str | os.PathLike[str]) -> None:
    """Write config.json and model.safetensors in the dtype of the model, replacing a model that is there."""
    path = Path(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    weights = {name: x.detach().float().cpu().numpy() for name, x in model.state_dict().items()}
    (path / "model.safetensors").unlink(missing_ok=True)
    save_checkpoint(Checkpoint(config=model.config, weights=weights, folder=path), path, dtype, processor_files=False)
