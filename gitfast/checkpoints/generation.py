"""The generation options of a checkpoint: ``generation_config.json``, or config.json in its place.

Token ids and options are read in the order of transformers: generation_config.json wins over config.json, whose
options count only without it. An id that only config.json has is taken too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gitfast.checkpoints.files import is_there, read_json
from gitfast.errors import ConfigError

FILE = "generation_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MAX_TOKENS = 1 << 20
_INTEGERS = {  # least and largest
    "max_length": (1, _MAX_TOKENS),
    "min_length": (0, _MAX_TOKENS),
    "max_new_tokens": (1, _MAX_TOKENS),
    "min_new_tokens": (0, _MAX_TOKENS),
    "num_beams": (1, 4_096),
    "num_return_sequences": (1, 4_096),
    "top_k": (0, _MAX_TOKENS),
    "no_repeat_ngram_size": (0, _MAX_TOKENS),
    "forced_bos_token_id": (0, _MAX_TOKENS),
    "forced_eos_token_id": (0, _MAX_TOKENS),
}
_NUMBERS = ("length_penalty", "temperature", "top_p", "min_p", "repetition_penalty")
_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_MAX_LIST = 100_000  # tokens of a list, or lists of tokens
_DEFAULT_TOP_K = 50  # transformers' default, where sampling is asked for
_OLD_MAX_LENGTH = 20  # the default that old config.json files spell out
# Options of transformers that change what is generated and that no engine has, each with the value that is off.
_UNSUPPORTED = {
    "constraints": None,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "renormalize_logits": False,
    "sequence_bias": None,
    "stop_strings": None,
    "top_h": None,
    "typical_p": 1.0,
    "watermarking_config": None,
}


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """The options a checkpoint asks for where its user asks for none.

    Attributes:
        options: Fields of ``GenerationOptions``.
        max_length, min_length: Lengths that count the prompt's tokens too; new tokens that are limited win.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    min_length: int | None = None

    def for_prompt(self, length: int) -> dict[str, Any]:
        """Return fields of ``GenerationOptions`` for prompts of at most ``length`` tokens."""
        values = dict(self.options)
        if self.max_length is not None:
            values.setdefault("max_new_tokens", max(1, self.max_length - length))
        if self.min_length is not None:
            values.setdefault("min_new_tokens", max(0, self.min_length - length))
        return values


def read_generation(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], GenerationDefaults]:
    """Read the token ids and the default options of a checkpoint.

    Args:
        folder: May hold generation_config.json.
        config: The content of config.json.

    Returns:
        ``config`` with the token ids that count, and the options.

    Raises:
        ConfigError: a value has the wrong type or cannot be; the message names the file and the value.
    """
    path = folder / FILE
    if not is_there(path, ConfigError):
        values, path = dict(config), folder / "config.json"
        if values.get("max_length") == _OLD_MAX_LENGTH:
            del values["max_length"]
        return dict(config), _defaults(values, path)
    values = read_json(path)
    ids = {name: values[name] for name in _TOKEN_IDS if values.get(name) is not None}
    for name, value in ids.items():
        for token in value if isinstance(value, list) else [value]:
            if not _is_integer(token) or token < 0:
                raise ConfigError(f"{path}: {name}: expected a token id, got {_shown(token)}")
    return {**config, **ids}, _defaults(values, path)


def _defaults(values: Mapping[str, Any], path: Path) -> GenerationDefaults:
    options: dict[str, Any] = {}
    for name, (least, largest) in _INTEGERS.items():
        if (value := values.get(name)) is not None:
            if not _is_integer(value) or not least <= value <= largest:
                raise ConfigError(f"{path}: {name}: expected an integer from {least} to {largest}, got {_shown(value)}")
            options[name] = value
    for name in _NUMBERS:
        if (value := values.get(name)) is not None:
            if not _is_number(value):
                raise ConfigError(f"{path}: {name}: expected a number, got {_shown(value)}")
            options[name] = float(value)
    if (value := values.get("do_sample")) is not None:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: do_sample: expected true or false, got {_shown(value)}")
        options["do_sample"] = value
    if (value := values.get("early_stopping")) is not None:
        if not isinstance(value, bool) and value != "never":
            raise ConfigError(f"{path}: early_stopping: expected true, false or 'never', got {_shown(value)}")
        options["early_stopping"] = value
    for name in _TOKEN_LISTS:
        if (value := values.get(name)) is not None:
            options[name] = _tokens(value, f"{path}: {name}")
    if (value := values.get("bad_words_ids")) is not None:
        if not isinstance(value, list) or len(value) > _MAX_LIST:
            raise ConfigError(f"{path}: bad_words_ids: expected at most {_MAX_LIST} lists of token ids")
        options["bad_words_ids"] = [_tokens(word, f"{path}: bad_words_ids") for word in value]
    _settle_sampling(options)
    _warn_unsupported(values, path)
    lengths = {name: options.pop(name, None) for name in ("max_length", "min_length")}
    return GenerationDefaults(options=options, **lengths)


def _settle_sampling(options: dict[str, Any]) -> None:
    """Keep transformers' default for sampling; drop invalid options, which have no effect without it."""
    if options.get("do_sample"):
        options.setdefault("top_k", _DEFAULT_TOP_K)
    elif options.get("temperature", 1.0) <= 0:
        del options["temperature"]


def _warn_unsupported(values: Mapping[str, Any], path: Path) -> None:
    ignored = [name for name, off in _UNSUPPORTED.items() if values.get(name) is not None and values[name] != off]
    if ignored:
        warnings.warn(f"{path}: {', '.join(ignored)} cannot be followed and are ignored", stacklevel=2)


def _tokens(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or len(value) > _MAX_LIST or not all(map(_is_integer, value)):
        raise ConfigError(f"{where}: expected a list of at most {_MAX_LIST} token ids, got {_shown(value)}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return ascii(value if isinstance(value, (int, float)) else str(value)[:40])
