"""Model configuration: the shapes of a GIT checkpoint, read from Hugging Face ``config.json``.

Defaults are those of ``microsoft/git-base``; a ``config.json`` that names only the fields that differ
(as the published ones do) is complete. Unknown and legacy keys are ignored.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gitfast.checkpoints.files import read_json
from gitfast.errors import ConfigError

# Bounds that no GIT checkpoint comes near; they keep an absurd config from allocating absurd memory.
_MAX_VALUES = {
    "vocab_size": 200_000,
    "hidden_size": 8_192,
    "intermediate_size": 65_536,
    "num_hidden_layers": 96,
    "num_attention_heads": 256,
    "max_position_embeddings": 65_536,
    "num_channels": 3,
    "image_size": 1_024,
    "patch_size": 256,
    "num_image_with_embedding": 64,
}
_MAX_IMAGE_TOKENS = 65_536
_MAX_EOS = 64


@dataclass(frozen=True, kw_only=True)
class GitVisionConfig:
    """The CLIP vision transformer that turns one image into tokens (git-base: ViT-B/16)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_fields(self, "vision_config", hidden_act="quick_gelu")
        if self.num_channels != 3:
            raise ConfigError(f"vision_config.num_channels: expected 3, got {self.num_channels}")
        if self.patch_size > self.image_size:
            raise ConfigError(
                f"vision_config.patch_size: {self.patch_size} is larger than image_size {self.image_size}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def grid_size(self) -> int:
        """Patches along one side of the square image."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one image: the class token and one per patch."""
        return 1 + self.grid_size**2


@dataclass(frozen=True, kw_only=True)
class GitConfig:
    """A whole GIT model: vision encoder, projection, and the text decoder.

    ``num_image_with_embedding`` is the number of frames of a video checkpoint, ``None`` for image checkpoints.
    ``tie_word_embeddings`` says that a file without ``output.weight`` means the word embeddings; a file that has
    both is read as it is. A text ends at ``eos_token_id`` or at one of ``other_eos_token_ids``, which are one list in
    ``config.json``.
    """

    vision_config: GitVisionConfig = field(default_factory=GitVisionConfig)
    vocab_size: int = 30_522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    max_position_embeddings: int = 1_024
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    num_image_with_embedding: int | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 101
    eos_token_id: int = 102
    other_eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        _check_fields(self, "config", hidden_act="gelu")
        named = {"bos_token_id": [self.bos_token_id], "eos_token_id": self.eos_token_ids}
        for name, ids in {**named, "pad_token_id": [self.pad_token_id]}.items():
            for value in ids:
                if value is not None and value >= self.vocab_size:
                    raise ConfigError(f"config.{name}: {value} is outside the vocabulary of {self.vocab_size}")
        if self.num_image_tokens > _MAX_IMAGE_TOKENS:
            raise ConfigError(
                f"config: its image size, patch size and frames make {self.num_image_tokens} image tokens; "
                f"at most {_MAX_IMAGE_TOKENS} are allowed"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end a text, ``eos_token_id`` first."""
        return (self.eos_token_id, *self.other_eos_token_ids)

    @property
    def is_video(self) -> bool:
        return self.num_image_with_embedding is not None

    @property
    def num_image_tokens(self) -> int:
        """Prefix tokens P of one full input: 197 for git-base, 6 x 197 for its video checkpoints."""
        return self.vision_config.num_tokens * (self.num_image_with_embedding or 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GitConfig:
        """Build from a ``config.json`` mapping; keys this class does not know are ignored.

        Raises:
            ConfigError: a value has the wrong type or cannot be; the message names it.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"config: expected a JSON object, got {type(values).__name__}")
        model_type = values.get("model_type", "git")
        if model_type != "git":
            raise ConfigError(f"config.model_type: expected 'git', got {reprlib.repr(model_type)}")
        vision = values.get("vision_config")
        if vision is None:
            vision = {}
        elif isinstance(vision, GitVisionConfig):
            vision = dataclasses.asdict(vision)
        elif not isinstance(vision, Mapping):
            raise ConfigError(f"config.vision_config: expected a JSON object, got {type(vision).__name__}")
        known = _known(cls, values)
        ends = known.get("eos_token_id")
        if isinstance(ends, (list, tuple)) and ends:
            known["eos_token_id"], *others = ends
            known["other_eos_token_ids"] = tuple(others)
        known["vision_config"] = GitVisionConfig(**_known(GitVisionConfig, vision))
        return cls(**known)

    @classmethod
    def from_file(cls, path: str | Path) -> GitConfig:
        """Read ``config.json``. Errors name the file."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` mapping of this configuration."""
        values = dataclasses.asdict(self)
        if values.pop("other_eos_token_ids"):
            values["eos_token_id"] = list(self.eos_token_ids)
        return {"model_type": "git", "architectures": ["GitForCausalLM"], **values}


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)} - {"vision_config", "other_eos_token_ids"}
    return {k: v for k, v in values.items() if k in names}


def _check_fields(config: GitConfig | GitVisionConfig, where: str, *, hidden_act: str) -> None:
    """Check types, ranges and divisibility shared by both configurations; no coercion of bool, float or str."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if expected := _violated(f.name, value, hidden_act):
            named = f.name if f.name != "other_eos_token_ids" else "eos_token_id"
            raise ConfigError(f"{where}.{named}: expected {expected}, got {reprlib.repr(value)}")
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"{where}.hidden_size: {config.hidden_size} is not divisible by "
            f"num_attention_heads {config.num_attention_heads}"
        )


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _violated(name: str, value: Any, hidden_act: str) -> str | None:
    """Return the rule that a field's value breaks, or None."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if name == "hidden_act":
        return None if value == hidden_act else repr(hidden_act)
    if name == "layer_norm_eps":
        return None if (is_int or isinstance(value, float)) and 0 < value < 1 else "a number between 0 and 1"
    if name == "tie_word_embeddings":
        return None if isinstance(value, bool) else "true or false"
    if name == "vision_config":
        return None if isinstance(value, GitVisionConfig) else "a GitVisionConfig"
    if name == "other_eos_token_ids":
        fits = isinstance(value, tuple) and len(value) < _MAX_EOS and all(map(_is_token_id, value))
        return None if fits else f"at most {_MAX_EOS} token ids >= 0 in all"
    if name.endswith("_token_id"):
        absent = value is None and name != "eos_token_id"  # a text needs an end, and no padding
        return None if absent or _is_token_id(value) else "a token id >= 0"
    if name == "num_image_with_embedding" and value is None:
        return None
    limit = _MAX_VALUES[name]
    return None if is_int and 0 < value <= limit else f"an integer from 1 to {limit}"
