"""The generation options of a checkpoint: ``generation_config.json``, or config.json in its place.

Token ids and options are read in the order of transformers: generation_config.json wins over config.json, whose
options count only without it. An id that only config.json has is taken too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Set
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
FORCED = ("forced_bos_token_id", "forced_eos_token_id")  # transformers takes lists too
_NUMBERS = ("length_penalty", "temperature", "top_p", "min_p", "repetition_penalty")
_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_MAX_LIST = 100_000  # tokens of a list, or lists of tokens
_DEFAULT_TOP_K = 50  # transformers' default, where sampling is asked for
_OLD_MAX_LENGTH = 20  # the default that old config.json files spell out
# Options of transformers that change what is generated and that no engine has, each with the value that is off.
_UNSUPPORTED = {
    "constraints": None,
    "custom_generate": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "sequence_bias": None,
    "stop_strings": None,
    "token_healing": False,
    "top_h": None,
    "typical_p": 1.0,
    "watermarking_config": None,
}
# Options of transformers that leave the text as it is: caches, compilation, drafts of another model, other kinds of
# models, the file's origin.
NO_EFFECT = frozenset(
    {
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "speculation_type",
        "synced_gpus",
        "target_lookbehind",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
        "use_mtp",
    }
)
# Options that add to what ``generate`` of transformers returns beside the text.
_OUTPUTS = frozenset(
    {
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "return_dict",
        "return_dict_in_generate",
    }
)


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """The options a checkpoint asks for where its user asks for none.

    Attributes:
        options: Fields of ``GenerationOptions``.
        max_length, min_length: Lengths that count the prompt's tokens too; new tokens that are limited win.
        bos_token_id: The token that texts without a prompt begin with; None: the tokenizer's ``[CLS]``.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    bos_token_id: int | None = None
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
        _check_token_id(value, config.get("vocab_size"), f"{path}: {name}", several=name == "eos_token_id")
    _warn_ignored(values.keys() - _UNSUPPORTED.keys() - _known(), values, path)
    return {**config, **ids}, _defaults(values, path)


def _check_token_id(value: Any, vocabulary: Any, where: str, *, several: bool) -> None:
    if several and isinstance(value, list):
        if not value:
            raise ConfigError(f"{where}: expected a token id or a list of them, got an empty list")
        for token in value:
            _check_token_id(token, vocabulary, where, several=False)
    elif not _is_integer(value) or value < 0:
        raise ConfigError(f"{where}: expected a token id, got {_shown(value)}")
    elif _is_integer(vocabulary) and 0 < vocabulary <= value:  # another size is refused with the configuration
        raise ConfigError(f"{where}: {_shown(value)} is outside the vocabulary of {vocabulary}")


def _defaults(values: Mapping[str, Any], path: Path) -> GenerationDefaults:
    options: dict[str, Any] = {}
    for name, (least, largest) in _INTEGERS.items():
        if (value := values.get(name)) is not None:
            if name in FORCED and isinstance(value, list) and len(value) == 1:
                (value,) = value
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
    if options.get("do_sample") and options.get("num_beams", 1) > 1:
        _warn(f"{path}: do_sample is ignored, because no engine samples beams: num_beams {options['num_beams']}")
        del options["do_sample"]
    _settle_sampling(options)
    _warn_ignored(_UNSUPPORTED.keys(), values, path)
    if options.get("num_return_sequences", 1) > options.get("num_beams", 1) and not options.get("do_sample"):
        _warn(f"{path}: num_return_sequences has no effect without as many num_beams, or do_sample")
    lengths = {name: options.pop(name, None) for name in ("max_length", "min_length")}
    begin = values.get("bos_token_id")
    return GenerationDefaults(options=options, bos_token_id=begin if _is_integer(begin) else None, **lengths)


def _known() -> Set[str]:
    """Return the names that are read here, or that may be left out."""
    read = {*_TOKEN_IDS, *_INTEGERS, *_NUMBERS, *_TOKEN_LISTS, "do_sample", "early_stopping", "bad_words_ids"}
    return read | NO_EFFECT | _OUTPUTS


def _settle_sampling(options: dict[str, Any]) -> None:
    """Keep transformers' default for sampling; drop invalid options, which have no effect without it."""
    if options.get("do_sample"):
        options.setdefault("top_k", _DEFAULT_TOP_K)
    elif options.get("temperature", 1.0) <= 0:
        del options["temperature"]


def _warn_ignored(names: Set[str], values: Mapping[str, Any], path: Path) -> None:
    """Warn of options that are on and that nothing here follows; names that begin with ``_`` are private."""
    ignored = [n for n in names if values.get(n) not in (None, False, _UNSUPPORTED.get(n)) and not n.startswith("_")]
    if ignored:
        _warn(f"{path}: ignored, because no engine has such an option: {', '.join(map(ascii, sorted(ignored)))}")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _tokens(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or len(value) > _MAX_LIST or not all(map(_is_integer, value)):
        raise ConfigError(f"{where}: expected a list of at most {_MAX_LIST} token ids, got {_shown(value)}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return str(value)[:40] if isinstance(value, (int, float)) else ascii(str(value)[:40])
