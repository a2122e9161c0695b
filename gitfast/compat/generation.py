"""``GitForCausalLM.generate``: settings as transformers reads them, the choice of an engine, tensors of results."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gitfast import arguments
from gitfast.checkpoints.generation import FORCED, NO_EFFECT
from gitfast.compat import native
from gitfast.compat.rows import check_tensors
from gitfast.engines.search import generate_with
from gitfast.errors import ArgumentError, EngineError
from gitfast.types import Generation, GenerationOptions

_logger = logging.getLogger("gitfast.compat")

# transformers' defaults of the settings that both searches know, and of those that decide between the two.
DEFAULTS: dict[str, Any] = {
    "max_length": None,
    "max_new_tokens": None,
    "min_length": None,
    "min_new_tokens": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "use_cache": True,
    "return_dict_in_generate": False,
}
# Settings of transformers' search alone, with the values at which the native search can ignore them.
THEIRS: dict[str, Any] = {
    "output_scores": False,
    "output_logits": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": None,
    "guidance_scale": None,
    "sequence_bias": None,
    "token_healing": False,
    "watermarking_config": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "max_time": None,
    "stop_strings": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "custom_generate": None,
    "prefix_allowed_tokens_fn": None,
    "logits_processor": None,
    "stopping_criteria": None,
    "streamer": None,
    "assistant_model": None,
    "assistant_tokenizer": None,
    "tokenizer": None,
    "negative_prompt_ids": None,
    "negative_prompt_attention_mask": None,
}
# Settings that leave the text as it is, which the native search can ignore.
_IGNORED = NO_EFFECT - DEFAULTS.keys()
# Options of gitfast.GenerationOptions that transformers does not have.
OURS = frozenset({"seed", "length_penalty_form", "ban_last_token", "allowed_token_ids"})
_FLAGS = ("do_sample", "use_cache", "return_dict_in_generate", "interpolate_pos_encoding")
_COUNTS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_return_sequences", "top_k")
_TOO_LARGE = 1 << 31
# Arguments of ``forward`` that the native engine takes.
_INPUTS = ("input_ids", "attention_mask", "pixel_values", "interpolate_pos_encoding")
_DEFAULT_NEW_TOKENS = 20
_NO_SCORE = -1e9  # of a beam that cannot exist


def generate(model: Any, inputs: Tensor | None, config: Any, passed: dict[str, Any], engine: str) -> Any:
    """Generate with the native engine where it can, else in PyTorch; see ``GitForCausalLM.generate``."""
    arguments.choice("engine", engine, ("auto", "cpu", "reference"))
    if inputs is not None:
        if passed.get("input_ids") is not None:
            raise ValueError("inputs, input_ids: expected at most one of them")
        passed = {**passed, "input_ids": inputs}
    passed.pop("token_type_ids", None)  # of BERT's tokenizer; GIT has none
    given = {name: value for name, value in passed.items() if value is not None}
    check_tensors(**{name: given.get(name) for name in ("input_ids", "attention_mask", "pixel_values")})
    pixels = given.get("pixel_values")
    if pixels is not None and (pixels.ndim not in (4, 5) or not len(pixels)):
        raise ArgumentError(f"pixel_values: expected (B, 3, H, W) or (B, T, 3, H, W), got {tuple(pixels.shape)}")
    settings, tensors = _settings(model, config, given)
    ours = {name: given[name] for name in OURS & given.keys()}
    why = _unusual(settings, given, tensors) or native.obstacle(model)
    if engine == "cpu" and why:
        raise EngineError(f"cpu engine: {why}")
    if engine == "reference" or why:
        if engine == "auto":
            _say(f"generate runs in PyTorch, not on the native engine: {why}")
        if ours or not hasattr(model, "their_generate"):
            return _generate_with_forward(model, settings, given, tensors, ours)
        return _generate_theirs(model, config, settings, {**passed, **tensors})
    return _generate_natively(model, settings, tensors, ours)


@functools.lru_cache(maxsize=256)
def _say(message: str) -> None:
    """Log once."""
    _logger.warning(message)


def _settings(model: Any, config: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings in force, and the arguments of ``forward``.

    In transformers' order: arguments, ``generation_config``, the model's ``generation_config``, transformers' defaults.
    Null is "not given".

    Raises:
        TypeError: an argument is neither.
    """
    defaults = {**DEFAULTS, **THEIRS}
    settings = dict(defaults)
    if config is not None and not isinstance(config, Mapping) and not callable(getattr(config, "to_dict", None)):
        raise ArgumentError(f"generation_config: expected a GenerationConfig, got {arguments.shown(config)}")
    for source in (model.generation_config, config):
        values = {} if source is None else source if isinstance(source, Mapping) else source.to_dict()
        settings |= {name: value for name, value in values.items() if value is not None and name in defaults}
    settings |= {name: value for name, value in given.items() if name in defaults}
    known = {
        *inspect.signature(model.forward).parameters,
        *inspect.signature(native.own_class(model).forward).parameters,
    }
    for name in _FLAGS:
        if name in given and not isinstance(given[name], (bool, int, np.bool_)):  # the truth of an array is an error
            raise ArgumentError(f"{name}: expected True or False, got {arguments.shown(given[name])}")
    for name in ("bos_token_id", "pad_token_id"):
        if settings[name] is not None:
            (settings[name],) = _ids(name, settings[name], single=True)
            if abs(settings[name]) >= _TOO_LARGE:
                raise ArgumentError(f"{name}: expected a token id, got {arguments.shown(settings[name])}")
    # transformers lets tokens that do not exist stand for "never"
    ends = [i for i in _ids("eos_token_id", settings["eos_token_id"]) if 0 <= i < model.config.vocab_size]
    settings["eos_token_id"] = ends
    for name in FORCED:
        if isinstance(settings[name], (list, tuple, Tensor)):
            settings[name] = _ids(name, settings[name])
    extra = given.keys() - defaults.keys() - OURS - _IGNORED
    if unknown := sorted(name for name in extra if name not in known and not _is_setting(model, name)):
        raise TypeError(f"generate: unknown options {', '.join(unknown)}")
    return settings, {name: given[name] for name in extra & known}


def _is_setting(model: Any, name: str) -> bool:
    """Return whether the model's own kind of configuration has a setting of this name."""
    return hasattr(model.generation_config, name)


def _unusual(settings: dict[str, Any], given: Mapping[str, Any], tensors: Mapping[str, Any]) -> str | None:
    """Return the request that the native engine cannot follow; None where there is none."""
    for name, default in THEIRS.items():
        if settings[name] not in (default, None) if not isinstance(settings[name], (list, tuple)) else settings[name]:
            return f"{name} is an option of transformers' search"
    if other := sorted(name for name in tensors if name not in _INPUTS):
        return f"{other[0]} is an argument of the model itself"
    if other := sorted(given.keys() - settings.keys() - OURS - _IGNORED - tensors.keys()):
        return f"{other[0]} is an option of transformers' search"
    if name := next((name for name in FORCED if isinstance(settings[name], list) and len(settings[name]) != 1), None):
        return f"{name} is a list of several tokens"
    if settings["do_sample"] and settings["num_beams"] > 1:
        return "do_sample with num_beams is transformers' search"
    if not settings["eos_token_id"]:
        return "no eos_token_id ends a text"
    return None


def _ids(name: str, value: Any, *, single: bool = False) -> list[int]:
    """List token ids given as one, as several, as a tensor, or not at all."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if value is None:
        return []
    listed = value if isinstance(value, (list, tuple)) and not single else [value]
    return [arguments.integer(name, item) for item in listed]


def _generate_theirs(model: Any, config: Any, settings: dict[str, Any], passed: dict[str, Any]) -> Any:
    """Run transformers' search; fill rows that have ended with the padding token, after beams too."""
    output = model.their_generate(generation_config=config, **passed)
    sequences = output if isinstance(output, Tensor) else output.sequences
    if settings["num_beams"] > 1 and settings["pad_token_id"] is not None:
        ids = passed.get("input_ids")
        start = 0 if passed.get("inputs_embeds") is not None else 1 if ids is None else ids.shape[1]
        _fill_ended(sequences[:, start:], settings["eos_token_id"], settings["pad_token_id"])
    if not isinstance(output, Tensor):
        output.engine = "reference"
    return output


def _fill_ended(rows: Tensor, ends: list[int], pad: int) -> None:
    """Write ``pad`` behind the first end-of-sequence token of every row of new tokens."""
    ended = torch.isin(rows, torch.tensor(ends, device=rows.device))
    rows[ended.cumsum(-1) - ended.int() > 0] = pad


def _generate_natively(model: Any, settings: dict[str, Any], tensors: dict[str, Any], ours: dict[str, Any]) -> Any:
    ids, prompts = _prompts(model, settings, tensors)
    options = _options(model, settings, ours, ids, prompts)
    engine = native.engine_of(model, settings["eos_token_id"])
    prefixes: list[Any] = [None]
    if (pixels := tensors.get("pixel_values")) is not None:
        interpolate = bool(tensors.get("interpolate_pos_encoding"))
        prefixes = list(engine.encode(pixels.detach().float().contiguous().numpy(), interpolate_positions=interpolate))
    rows = [prefixes[r % len(prefixes)] for r in range(len(prompts))]
    if options.do_sample and options.seed is None:
        found = _drawn(engine, rows, prompts, options)
    else:
        found = engine.generate(rows, prompts, options)
    _check_room(model, settings, ids, prompts, found)
    return _result(model, settings, ids, found, "cpu", options)


def _drawn(
    engine: Any, prefixes: Sequence[Any], prompts: Sequence[list[int]], options: GenerationOptions
) -> list[list[Generation]]:
    """Draw samples, each row's from a seed of its own, which torch's seed decides: equal rows differ."""
    decoding = engine.decoding()
    handles = []
    for prefix, prompt in zip(prefixes, prompts, strict=True):
        seed = int(torch.randint(0, 2**62, ()))
        handles.append(decoding.add(prefix, prompt, dataclasses.replace(options, seed=seed)))
    found: dict[int, list[Generation]] = {}
    while len(decoding):
        for event in decoding.step():
            if event.error is not None:
                raise event.error
            if event.generations is not None:
                found[event.handle] = event.generations
    return [found[handle] for handle in handles]


def _generate_with_forward(
    model: Any, settings: dict[str, Any], given: Mapping[str, Any], tensors: dict[str, Any], ours: dict[str, Any]
) -> Any:
    """Run the native search over the model's own ``forward``, row by row: every change to it has its effect.

    Raises:
        ValueError: it is asked for what only transformers' search does.
    """
    usual = _unusual(settings, given, {name: x for name, x in tensors.items() if name != "use_cache"})
    if usual:
        hint = f"not together with {', '.join(sorted(ours))}" if ours else "which needs transformers installed"
        raise ValueError(f"generate: {usual}, {hint}")
    ids, prompts = _prompts(model, settings, tensors)
    options = _options(model, settings, ours, ids, prompts)
    pixels = tensors.get("pixel_values")
    extra = {"interpolate_pos_encoding": True} if tensors.get("interpolate_pos_encoding") else {}
    caches: list[tuple[Any, int]] = []  # the last step's rows: keys and values, and the text tokens in them

    def run(item: int, row: Sequence[int], cache: Any, past: int) -> tuple[Tensor, tuple[Any, int]]:
        inputs: dict[str, Any] = {"past_key_values": cache} if past else dict(extra)
        if pixels is not None and not past:
            inputs["pixel_values"] = pixels[item % len(pixels)][None]
        positions = torch.arange(past, past + len(row), device=model.device)[None]
        tokens = torch.tensor([list(row)], device=model.device)
        output = model(input_ids=tokens, position_ids=positions, use_cache=True, **inputs)
        return output.logits[0, -1], (output.past_key_values, past + len(row))

    def step(ids: Sequence[Sequence[int]], parents: Sequence[int] | None, items: Sequence[int]) -> Tensor:
        nonlocal caches
        before = [(None, 0)] * len(ids) if parents is None else [caches[parent] for parent in parents]
        # a cache is written to, and beams share their parent's
        found = [run(i, row, copy.deepcopy(c), n) for i, row, (c, n) in zip(items, ids, before, strict=True)]
        caches = [cache for _, cache in found]
        return torch.stack([logits for logits, _ in found]).float().cpu()

    sizes = {"vocab_size": model.config.vocab_size, "eos_token_id": settings["eos_token_id"]}
    with torch.no_grad():
        if options.do_sample and options.seed is None:  # torch.manual_seed decides
            options = dataclasses.replace(options, seed=int(torch.randint(0, 2**62, ())))
        found = generate_with(step, prompts, options, **sizes)
    _check_room(model, settings, ids, prompts, found)
    return _result(model, settings, ids, found, "reference", options)


def _prompts(model: Any, settings: dict[str, Any], tensors: dict[str, Any]) -> tuple[Tensor, list[list[int]]]:
    """Return the prompts as passed (R, L), and the real tokens of every row."""
    ids, pixels, mask = (tensors.get(name) for name in ("input_ids", "pixel_values", "attention_mask"))
    images = 1 if pixels is None else len(pixels)
    if ids is None:
        if settings["bos_token_id"] is None:
            raise ValueError("input_ids: expected prompts, because there is no bos_token_id to begin with")
        ids = torch.full((images, 1), settings["bos_token_id"])
    if not isinstance(ids, Tensor) or ids.is_floating_point():
        raise ValueError(f"input_ids: expected a tensor of token ids, got {arguments.shown(ids)}")
    if ids.ndim != 2:
        raise ValueError(f"input_ids: expected (R, L), got {tuple(ids.shape)}")
    if not len(ids) or len(ids) % images:
        raise ValueError(f"input_ids: {len(ids)} rows do not divide over {images} images")
    pad = settings["pad_token_id"]
    if mask is not None:
        real = mask != 0
    elif pad is None or pad in settings["eos_token_id"]:
        real = torch.ones_like(ids, dtype=torch.bool)
    else:
        real = ids != pad
    if real.shape != ids.shape:
        raise ValueError(f"attention_mask: expected shape {tuple(ids.shape)}, got {tuple(real.shape)}")
    prompts = [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
    if not all(prompts):
        raise ValueError("input_ids: a row has no token that is not padding")
    return ids, prompts


def _options(
    model: Any, settings: dict[str, Any], ours: dict[str, Any], ids: Tensor, prompts: list[list[int]]
) -> GenerationOptions:
    """Make native options of settings; ``max_length`` and ``min_length`` count prompts as they were passed.

    As in transformers, more new tokens may be asked for than there are positions (``_check_room``), and a minimum
    above the maximum is the maximum, with a warning.
    """
    settings = dict(settings)
    for name in _COUNTS:
        if settings[name] is not None:
            settings[name] = arguments.integer(name, settings[name])
            if abs(settings[name]) >= _TOO_LARGE:
                raise ArgumentError(f"{name}: expected less than {_TOO_LARGE}, got {arguments.shown(settings[name])}")
    values = {name: settings[name] for name in DEFAULTS if name in _FIELDS and settings[name] is not None}
    for name in FORCED:
        if isinstance(values.get(name), (list, tuple)):
            (values[name],) = values[name]
    length = ids.shape[1]
    most = min(_new_tokens(settings, length, model.config.max_position_embeddings), max(1, _room(model, prompts)))
    least, name = settings["min_new_tokens"] or 0, "min_new_tokens"
    if settings["min_new_tokens"] is None and settings["min_length"] is not None:
        least, name = max(0, settings["min_length"] - length), "min_length"
    if least > most > 0:
        warnings.warn(f"{name}: {settings[name]} is more than can be generated; taking {most} new tokens", stacklevel=5)
        least = most
    values |= {"max_new_tokens": most, "min_new_tokens": least}
    if not settings["do_sample"]:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            values.pop(name, None)
    return GenerationOptions(**{**values, **ours})


def _room(model: Any, prompts: list[list[int]]) -> int:
    """Return the new tokens there are positions for; the last one is fed to nothing and needs none."""
    return model.config.max_position_embeddings - max(map(len, prompts)) + 1


def _check_room(model: Any, settings: dict[str, Any], ids: Tensor, prompts: list[list[int]], found: Any) -> None:
    """Check that no text was cut because the model has no more positions, where more tokens were asked for."""
    positions, room = model.config.max_position_embeddings, _room(model, prompts)
    asked = _new_tokens(settings, ids.shape[1], positions)
    if asked > room and any(generation.finish_reason == "length" for row in found for generation in row):
        raise ArgumentError(
            f"max_new_tokens: {asked} behind {positions + 1 - room} tokens of a prompt, and a text did not end "
            f"within the model's {positions} positions; expected at most {room}"
        )


def _new_tokens(settings: dict[str, Any], length: int, positions: int) -> int:
    if settings["max_new_tokens"] is not None:
        return settings["max_new_tokens"]
    if settings["max_length"] is None:
        return max(1, min(_DEFAULT_NEW_TOKENS, positions - length))
    if settings["max_length"] <= length:
        raise ValueError(
            f"max_length: expected more than the prompt's {length} tokens, got {settings['max_length']}; "
            "max_new_tokens does not count the prompt"
        )
    return settings["max_length"] - length


def _filled(sequences: list[Generation], count: int) -> list[Generation]:
    """Return ``count`` sequences of a row. Where fewer exist the last fills the places, with transformers' score."""
    missing = dataclasses.replace(sequences[-1], score=_NO_SCORE)
    return [*sequences[:count], *[missing] * (count - len(sequences))]


_FIELDS = frozenset(field.name for field in dataclasses.fields(GenerationOptions))


def _result(
    model: Any,
    settings: dict[str, Any],
    ids: Tensor,
    found: list[list[Generation]],
    engine: str,
    options: GenerationOptions,
) -> Any:
    """Return sequences (R * n, longest): every row's prompt as it was passed, its new tokens, and padding."""
    found = [_filled(sequences, options.num_return_sequences) for sequences in found]
    pad = settings["pad_token_id"]
    if pad is None:
        pad = settings["eos_token_id"][0]
    rows = [[*p, *generation.token_ids] for p, row in zip(ids.tolist(), found, strict=True) for generation in row]
    sequences = torch.full((len(rows), max(map(len, rows))), pad)
    for i, row in enumerate(rows):
        sequences[i, : len(row)] = torch.tensor(row)
    sequences = sequences.to(model.device)
    if not settings["return_dict_in_generate"]:
        return sequences
    flat = [generation for row in found for generation in row]
    scores = torch.tensor([generation.score for generation in flat], device=model.device)
    logprobs = [generation.token_logprobs for generation in flat]
    return model.generate_output(
        beams=options.num_beams > 1,
        sequences=sequences,
        sequences_scores=scores,
        token_logprobs=logprobs,
        engine=engine,
    )
