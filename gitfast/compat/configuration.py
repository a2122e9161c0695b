"""``GitConfig``, ``GitVisionConfig`` and ``GenerationConfig`` with the fields and methods of transformers'."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from gitfast.checkpoints import config, hub
from gitfast.checkpoints.files import read_json
from gitfast.errors import ConfigError


class _Settings:
    """Fields by name, which may be set; unknown fields are kept and written back."""

    model_type = ""
    defaults: Mapping[str, Any] = {}

    def __init__(self, **values: Any) -> None:
        values.pop("model_type", None)
        for name, value in {**copy.deepcopy(dict(self.defaults)), **values}.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def update(self, values: Mapping[str, Any]) -> None:
        """Set fields."""
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """Build from a mapping of a config.json.

        Raises:
            ConfigError: a value cannot be.
        """
        return cls(**{**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that config.json holds."""
        values = {k: v.to_dict() if isinstance(v, _Settings) else copy.deepcopy(v) for k, v in vars(self).items()}
        return {"model_type": self.model_type, **values} if self.model_type else values


class GitVisionConfig(_Settings):
    """``gitfast.checkpoints.config.GitVisionConfig`` whose fields may be set."""

    model_type = "git_vision_model"
    defaults = {f.name: f.default for f in dataclasses.fields(config.GitVisionConfig)} | {
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }

    def checked(self) -> config.GitVisionConfig:
        """Return the checked shapes that the models are built with. Raises ``ConfigError``."""
        return config.GitConfig.from_dict({"vision_config": vars(self)}).vision_config


class GitConfig(_Settings):
    """``gitfast.checkpoints.config.GitConfig`` whose fields may be set, with those that training and saving need."""

    model_type = "git"
    defaults = {
        f.name: f.default
        for f in dataclasses.fields(config.GitConfig)
        if f.name not in ("vision_config", "other_eos_token_ids")
    } | {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    vision_config: GitVisionConfig

    def __init__(self, vision_config: Any = None, **values: Any) -> None:
        super().__init__(**values)
        if isinstance(vision_config, config.GitVisionConfig):
            vision_config = dataclasses.asdict(vision_config)
        if vision_config is None or isinstance(vision_config, Mapping):
            vision_config = GitVisionConfig(**(vision_config or {}))
        self.vision_config = vision_config
        self.checked()

    def checked(self) -> config.GitConfig:
        """Return the checked shapes that the models are built with; no layer depends on the end tokens.

        Raises:
            ConfigError: a value cannot be.
        """
        values = {name: value for name, value in vars(self).items() if name != "vision_config"}
        if values["eos_token_id"] is None:
            values["eos_token_id"] = 0
        vision = self.vision_config
        vision_values = vars(vision) if isinstance(vision, GitVisionConfig) else vision
        return config.GitConfig.from_dict({**values, "vision_config": vision_values})

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """Load a model's configuration; names and options as in ``gitfast.load``, other options set fields.

        Raises:
            CheckpointError, ConfigError: there is no such model, or its config.json is missing or wrong.
        """
        fetch = {name: options.pop(name) for name in tuple(options) if name in FETCH_OPTIONS}
        file = hub.resolve(model, **fetch) / "config.json"
        try:
            return cls.from_dict(read_json(file), **options)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json into ``folder``, which is made when it is not there."""
        write_json(self.to_dict(), Path(folder) / "config.json")


class GenerationConfig(_Settings):
    """Defaults of ``generate``, as generation_config.json holds them; null is "not said"."""

    @classmethod
    def from_model_config(cls, values: Any) -> Self:
        """Build from config.json, for a model without generation_config.json."""
        found = values.to_dict()
        return cls(**{name: found.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")})

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """Load by a model's name, from its config.json where it has no generation_config.json."""
        folder = hub.resolve(model, **options)
        return cls.from_folder(folder) or cls.from_model_config(GitConfig.from_pretrained(folder))

    @classmethod
    def from_folder(cls, folder: Path) -> Self | None:
        """Read a folder's generation_config.json; None where there is none."""
        file = folder / "generation_config.json"
        return cls(**read_json(file)) if file.is_file() else None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write generation_config.json."""
        write_json({k: v for k, v in self.to_dict().items() if v is not None}, Path(folder) / "generation_config.json")


FETCH_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object, into a folder that is made when it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
