"""``GitConfig`` with the methods of transformers' configurations."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gitfast.checkpoints import config, hub


@dataclass(frozen=True, kw_only=True)
class GitConfig(config.GitConfig):
    """``gitfast.checkpoints.config.GitConfig`` that is read and written by name."""

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """The configuration of a model; names and options as in ``gitfast.load``.

        Raises:
            CheckpointError, ConfigError: there is no such model, or its config.json is missing or wrong.
        """
        values = config.GitConfig.from_file(hub.resolve(model, **options) / "config.json")
        return cls(**{name: getattr(values, name) for name in values.__dataclass_fields__})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json into ``folder``, which is made when it is not there."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
