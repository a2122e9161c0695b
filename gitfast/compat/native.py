"""The native engine in place of a torch model: the conditions, and the engine built from its weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from gitfast.checkpoints.checkpoint import expected_tensors
from gitfast.checkpoints.config import GitConfig
from gitfast.engines.cpu import CpuEngine
from gitfast.errors import ConfigError, EngineError

# Attributes that a subclass must not change for the native engine to stand in for it.
_GUARDED = ("forward", "__call__", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # the engine computes in float32, where all are exact
_SAMPLES = 32  # values read of each tensor to see changes that autograd's version counters do not


def native_config(config: Any) -> GitConfig:
    """Return a model's configuration as the engines take it; ``generate`` passes the tokens that end a text."""
    return GitConfig.from_dict({**config.to_dict(), "eos_token_id": 0})


def own_class(model: Any) -> Any:
    """Return the class of ``gitfast.compat`` that a model is an instance of."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("gitfast.compat"))


def obstacle(model: Any) -> str | None:
    """Return why the native engine cannot stand in for ``model``; None where it can."""
    if model.device.type != "cpu" or model.dtype not in _DTYPES:
        return f"needs a float32, float16 or bfloat16 model on the CPU, got {model.dtype} on {model.device}"
    if model.training:
        return "needs a model in evaluation mode: model.eval()"
    own = own_class(model)
    for name in _GUARDED:
        if getattr(type(model), name, None) is not getattr(own, name, None):
            return f"{type(model).__name__} overrides {name}"
        if name in vars(model):
            return f"{name} of the model is replaced"
    try:
        config = native_config(model.config)
        expected = _structure(own, json.dumps(model.config.to_dict(), default=str, sort_keys=True), model.config)
    except (ConfigError, ValueError, TypeError) as error:
        return str(error)
    return _changed_module(model, expected) or _changed_tensors(model, config)


def _changed_module(model: nn.Module, expected: dict[str, tuple[type, str]]) -> str | None:
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "forward hooks of all modules are set"
    found = dict(model.named_modules())
    for name, module in found.items():
        where = name or "the model"
        if name not in expected:
            return f"{where} ({type(module).__name__}) is not part of GIT"
        kind, settings = expected[name]
        if name and type(module) is not kind:
            return f"{where} is a {type(module).__module__}.{type(module).__name__}"
        if name and _settings(module) != settings:
            return f"{where} is {type(module).__name__}({module.extra_repr()})"
        if "forward" in module.__dict__:
            return f"forward of {where} is replaced"
        if module.training and _drops(module):
            return f"{where} is in training mode, and drops values"
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # transformers' own hooks record or ask for gradients; they change no value
        if any(not (getattr(hook, "__module__", None) or "").startswith("transformers.") for hook in hooks):
            return f"{where} has forward hooks"
    if missing := expected.keys() - found.keys():
        return f"{min(missing)} is missing"
    return None


def _drops(module: nn.Module) -> bool:
    """Return whether a module in training mode computes something else: its own dropout, not that of its children."""
    found = (getattr(module, name, None) for name in ("p", "dropout", "attention_dropout"))
    return any(isinstance(probability, (int, float)) and probability > 0 for probability in found)


def _changed_tensors(model: nn.Module, config: GitConfig) -> str | None:
    expected, found = expected_tensors(config), model.state_dict()
    if different := sorted(expected.keys() ^ found.keys()):
        return f"{different[0]} is {'missing' if different[0] in expected else 'not part of GIT'}"
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            return f"{name}: expected shape {shape}, got {tuple(found[name].shape)}"
        if found[name].dtype not in _DTYPES or found[name].device.type != "cpu":
            return f"{name} is {found[name].dtype} on {found[name].device}"
    return None


def _structure(own: type, key: str, config: Any) -> dict[str, tuple[type, str]]:
    """Return every module of an unchanged model by name: its class and settings."""
    return _structures(own, key, _Unhashed(config))


class _Unhashed:
    """A value that a cache's key leaves out."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


def _settings(module: nn.Module) -> str:
    """Return what a module says of itself; a list of parameters says dtype and device, which may differ."""
    return "" if isinstance(module, nn.ParameterList) else module.extra_repr()


@functools.lru_cache(maxsize=8)
def _structures(own: type, key: str, config: _Unhashed) -> dict[str, tuple[type, str]]:
    with torch.device("meta"):
        pristine = own(config.value)
    return {name: (type(module), _settings(module)) for name, module in pristine.named_modules()}


def engine_of(model: Any, ends: Sequence[int]) -> CpuEngine:
    """Return the native engine of a model's weights, rebuilt when they change; texts end at one of ``ends``.

    Raises:
        EngineError: the weights cannot be packed.
    """
    state = _state(model)
    native = model._native  # read once: other threads may build and set theirs
    if native is None or native[1] != state:
        model._native = native = None  # its memory is free before the new one is built
        weights = {name: _array(x.detach()) for name, x in model.state_dict().items()}
        try:
            engine = CpuEngine.from_weights(native_config(model.config), weights)
        except ValueError as error:
            raise EngineError(f"cpu engine: {error}") from error
        model._native = native = (engine, state)
    engine = copy.copy(native[0])  # the same weights
    engine.config = dataclasses.replace(engine.config, eos_token_id=ends[0], other_eos_token_ids=tuple(ends[1:]))
    return engine


def _array(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Fingerprint the weights, to notice writes: autograd's versions, and samples of the values (for ``.data``)."""
    parameters = [*model.parameters()]
    samples = b"".join(_sampled(p.detach(), model.config.vocab_size) for p in parameters)
    # What inference mode made has no version.
    return (*((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters), samples)


def _sampled(x: torch.Tensor, vocab_size: int) -> bytes:
    """Return a value of every row of a table of words, whose rows people set one by one; of others a few, diagonally.

    So they are seen where some rows or some columns were written, a head's for example. They are copied by numpy:
    torch would take threads for as many, which a forked child does not have.
    """
    count = max(_SAMPLES, vocab_size) if len(x) == vocab_size else _SAMPLES
    columns = x.shape[-1] if x.ndim > 1 else 0
    found = x.reshape(-1)[:: max(1, x.numel() // count + columns // count)]
    return (found.view(torch.int16) if x.dtype == torch.bfloat16 else found).numpy().tobytes()
