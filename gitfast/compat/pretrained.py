"""``from_pretrained``, ``save_pretrained`` and the housekeeping of transformers' models, without transformers."""

from __future__ import annotations

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
from gitfast.checkpoints.files import read_json
from gitfast.compat.configuration import FETCH_OPTIONS, GenerationConfig, GitConfig, write_json
from gitfast.torch_model import initialize, load_weights

DTYPES = ("float32", "float16", "bfloat16")
# Options of transformers' from_pretrained that change nothing here, or whose default is what is done.
_NO_MATTER = (
    "attn_implementation",
    "force_download",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_fast",
    "use_safetensors",
)
# The same of its save_pretrained.
_NO_MATTER_SAVED = ("is_main_process", "max_shard_size", "safe_serialization", "save_original_format")


class PreTrained(nn.Module):
    """A module whose ``state_dict`` holds the tensors of a checkpoint below ``weights_prefix``, without it."""

    weights_prefix = ""
    main_input_name = "input_ids"
    config: Any
    gradient_checkpointing = False

    def post_init(self) -> None:
        """Draw fresh weights, and tie the head where the configuration says so."""
        initialize(self, self.config.initializer_range)
        self.tie_weights()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | int | None = None,
        config: Any = None,
        **options: Any,
    ) -> Self:
        """Load a model by name, in evaluation mode: a whole checkpoint, or a folder of ``save_pretrained``.

        Args:
            model: As in ``gitfast.load``: a folder, a repository of the Hub, a short name, a LoRA adapter's folder.
            dtype: The parameters' dtype, a torch dtype or its name; "auto", the default, is that of config.json.
            torch_dtype: The older name of ``dtype``.
            device_map: One device for the whole model; several need transformers and accelerate.
            config: In place of the checkpoint's own.
            **options: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, as in ``gitfast.load``.

        Raises:
            CheckpointError, ConfigError: as ``gitfast.load``.
            ValueError: another dtype, or several devices.
            TypeError: an option that is not known here.
        """
        options = {name: value for name, value in options.items() if name not in _NO_MATTER and value is not None}
        if unknown := sorted(options.keys() - set(FETCH_OPTIONS)):
            raise TypeError(f"from_pretrained: {', '.join(unknown)}: not known, or needs transformers installed")
        weights: Mapping[str, np.ndarray]
        folder = hub.resolve(model, **options)
        settings = folder / "config.json"
        stored = read_json(settings) if settings.is_file() else {}
        name = _dtype_name(dtype if dtype is not None else torch_dtype, stored)
        if cls.weights_prefix and stored.get("architectures") == [cls.__name__] and not stored.get("auto_map"):
            made = cls(config or cls.config_from_dict(stored))
            weights = {name: tensor.load() for name, tensor in read_tensors(folder / "model.safetensors").items()}
        else:
            checkpoint = hub.open_model(folder, **options)
            values = {**stored, **checkpoint.config.to_dict()} | {
                name: value for name, value in stored.items() if name.endswith("_token_id")
            }
            whole = GitConfig.from_dict(values)
            made = cls(config or cls.config_of(whole))
            start, tensors = cls.weights_prefix, checkpoint.weights
            weights = {name[len(start) :]: tensors[name] for name in tensors if name.startswith(start)}
            folder = checkpoint.folder
        load_weights(made, weights)
        if hasattr(made, "generation_config"):
            made.generation_config = GenerationConfig.from_folder(folder) or made.generation_config
        return made.to(device=_device(device_map), dtype=getattr(torch, name)).eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor] | None = None, **options: Any
    ) -> None:
        """Write config.json, generation_config.json and model.safetensors, in the dtype of the model.

        ``GitProcessor.save_pretrained`` writes the tokenizer and the preprocessor's settings.

        Args:
            folder: Made when it is not there.
            state_dict: In place of the model's own.
            **options: ``max_shard_size`` and others of transformers that do not matter: there is one file.

        Raises:
            TypeError: an option that is not known here.
        """
        if unknown := sorted(options.keys() - set(_NO_MATTER_SAVED)):
            raise TypeError(f"save_pretrained: {', '.join(unknown)}: not known, or needs transformers installed")
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        state = self.state_dict() if state_dict is None else dict(state_dict)
        tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
        if self._tied():
            tensors.pop("output.weight", None)
        partial = path / "model.safetensors.partial"
        save_file(tensors, partial, {"format": "pt"})
        partial.replace(path / "model.safetensors")  # whoever finds the file finds all of it
        dtype = str(self.dtype).removeprefix("torch.")
        write_json(
            {**self.config.to_dict(), "architectures": [type(self).__name__], "dtype": dtype}, path / "config.json"
        )
        if hasattr(self, "generation_config"):
            self.generation_config.save_pretrained(path)

    @staticmethod
    def config_of(config: GitConfig) -> Any:
        """Return the part of a checkpoint's configuration that this class is built with."""
        return config

    @classmethod
    def config_from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Return the configuration in a config.json that this class wrote."""
        return GitConfig.from_dict(values)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the values in all parameters."""
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else {}
        counted = [p for p in self.parameters() if id(p) not in embeddings]
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Keep no activations of the decoder's layers; compute them again for the gradient."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.gradient_checkpointing

    @classmethod
    def can_generate(cls) -> bool:
        return hasattr(cls, "generate")

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear | None:
        return None

    def tie_weights(self) -> None:
        """Let the head and the word embeddings be one parameter, where the configuration says so."""
        head = self.get_output_embeddings()
        if head is not None and self.config.tie_word_embeddings:
            head.weight = self.get_input_embeddings().weight

    def _tied(self) -> bool:
        head = self.get_output_embeddings()
        return head is not None and head.weight is self.get_input_embeddings().weight

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = False
    ) -> nn.Module:
        """Resize word embeddings and head; draw new rows as fresh weights. Returns the word embeddings.

        Args:
            new_num_tokens: Rows; None: as many as there are.
            pad_to_multiple_of: Round the rows up.
            mean_resizing: Draw around the mean of the old rows, which needs transformers: False here.

        Raises:
            ValueError: ``mean_resizing`` is asked for.
        """
        if mean_resizing:
            raise ValueError("mean_resizing: needs transformers installed")
        words = self.get_input_embeddings()
        if pad_to_multiple_of:
            rows = new_num_tokens or words.num_embeddings
            new_num_tokens = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if new_num_tokens is None or new_num_tokens == words.num_embeddings:
            return words
        kept = min(new_num_tokens, words.num_embeddings)
        with torch.no_grad():
            for module in filter(None, (words, self.get_output_embeddings())):
                for name, old in tuple(module.named_parameters(recurse=False)):
                    rows = torch.empty(new_num_tokens, *old.shape[1:], dtype=old.dtype, device=old.device)
                    rows.normal_(std=self.config.initializer_range) if old.ndim == 2 else rows.zero_()
                    rows[:kept] = old[:kept]
                    setattr(module, name, nn.Parameter(rows, requires_grad=old.requires_grad))
        words.num_embeddings = self.config.vocab_size = new_num_tokens
        if (head := self.get_output_embeddings()) is not None:
            head.out_features = new_num_tokens
        self.tie_weights()
        return words


def _dtype_name(dtype: torch.dtype | str | None, stored: Mapping[str, Any]) -> str:
    chosen = stored.get("dtype") or stored.get("torch_dtype") if dtype in (None, "auto") else dtype
    name = str(chosen or "float32").removeprefix("torch.")
    if name in DTYPES:
        return name
    if dtype in (None, "auto"):  # a config.json may say anything
        return "float32"
    raise ValueError(f"dtype: expected 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")


def _device(device_map: Any) -> torch.device:
    if device_map is None:
        return torch.device("cpu")
    if device_map in ("auto", "balanced", "sequential"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device_map, Mapping):
        if len(set(device_map.values())) > 1:
            raise ValueError(f"device_map: several devices need transformers and accelerate, got {device_map}")
        device_map = next(iter(device_map.values()))
    return torch.device(device_map)
