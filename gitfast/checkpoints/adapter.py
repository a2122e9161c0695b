"""LoRA adapters of the peft library: a folder of small matrices, merged into their base model when it is opened.

A linear layer with an adapter computes W x + s B A x, so the merged weight is W + s B A; s is alpha / r, with rslora
alpha / sqrt(r) (https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2312.03732). The product is taken in float32.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gitfast.checkpoints.checkpoint import Checkpoint, Shape, expected_tensors, listed, read_tensors
from gitfast.checkpoints.files import FormatError, is_there, read_json
from gitfast.checkpoints.patterns import Budget, Suffix
from gitfast.checkpoints.stored_tensor import FLOAT_DTYPES, StoredTensor
from gitfast.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
# Settings that change the computation; only these values can be merged exactly.
_REQUIRED = {"peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "lora_bias": False, "use_qalora": False}
# Initialisations that leave the base model as it is; the others (PiSSA, OLoRA, ...) train against a changed one.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
# Ways of peft to compute something else than W x + s B A x, or to change weights that hold no matrices.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",  # their alphas are named after parameters, and tied ones change together
    "trainable_token_indices",
    "use_bdlora",
    "velora_config",
)
_MAX_PATTERNS = 4_096
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]{0,200}", re.ASCII)  # it becomes part of a path in the cache


@dataclass(frozen=True)
class _Pair:
    """The two matrices of one layer, A (r, inputs) and B (outputs, r), and the scale of their product."""

    down: StoredTensor
    up: StoredTensor
    scale: float


def is_adapter(folder: str | Path) -> bool:
    """Return whether a folder holds an adapter rather than a model."""
    folder = Path(folder)
    return is_there(folder / CONFIG_FILE) and any(is_there(folder / name) for name in _WEIGHT_FILES)


def base_model(folder: str | Path) -> tuple[str, str | None]:
    """Return the name or path of the model an adapter was trained on, and its revision where that is a repository.

    Raises:
        CheckpointError: the adapter's configuration does not say, or is damaged.
    """
    path = Path(folder) / CONFIG_FILE
    settings = read_json(path, CheckpointError)
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name or "\0" in name:
        raise CheckpointError(f"{path}: base_model_name_or_path is missing")
    if revision is not None and not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise CheckpointError(
            f"{path}: revision: expected a branch, tag or commit of the base model, got {reprlib.repr(revision)}"
        )
    return name, revision


def apply_adapter(folder: str | Path, base: Checkpoint) -> Checkpoint:
    """Merge an adapter into ``base``; tokenizer and preprocessor files of the adapter's folder win.

    Raises:
        CheckpointError: not a LoRA adapter that can be merged, or not one of this model; the message names the file
            and lists every tensor that does not fit.
    """
    folder = Path(folder)
    settings = read_json(folder / CONFIG_FILE, CheckpointError)
    for name, value in _REQUIRED.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: {name} is {reprlib.repr(settings[name])}; only {value!r} can be merged"
            )
    if found := [name for name in _UNSUPPORTED if settings.get(name)]:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {', '.join(found)}: not supported; merge it with peft")
    if (kind := settings.get("init_lora_weights")) not in _INITIALISATIONS:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: init_lora_weights is {reprlib.repr(kind)}, "
            "which changes the base model; convert it with peft"
        )
    path = next((folder / name for name in _WEIGHT_FILES if is_there(folder / name)), None)
    if path is None:
        raise CheckpointError(f"{folder}: no adapter weights; expected one of {', '.join(_WEIGHT_FILES)}")
    tensors = read_tensors(path)
    try:
        pairs, replaced, problems = _sort(tensors, settings, expected_tensors(base.config))
    except FormatError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None
    if problems:
        raise CheckpointError(f"{path}: does not fit its base model in {len(problems)}:\n  " + listed(problems))
    own_files = (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file()
    weights = _MergedWeights(base.weights, pairs, replaced)
    return replace(base, weights=weights, folder=folder if own_files else base.folder)


class _MergedWeights(Mapping[str, np.ndarray]):
    """The tensors of the base model; those with an adapter are computed when they are asked for."""

    def __init__(
        self, base: Mapping[str, np.ndarray], pairs: Mapping[str, _Pair], replaced: Mapping[str, StoredTensor]
    ) -> None:
        self._base = base
        self._pairs = pairs
        self._replaced = replaced

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._replaced:
            return self._replaced[name].load()
        weight = self._base[name]
        if name not in self._pairs:
            return weight
        pair = self._pairs[name]
        product = pair.up.load().astype(np.float32) @ pair.down.load().astype(np.float32)
        return weight.astype(np.float32) + np.float32(pair.scale) * product

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _sort(
    tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> tuple[dict[str, _Pair], dict[str, StoredTensor], list[str]]:
    """Sort the adapter's tensors into pairs and replacements, by the weight they change, and problems."""
    pairs: dict[str, _Pair] = {}
    replaced: dict[str, StoredTensor] = {}
    problems: list[str] = []
    alphas = _Alphas(settings)
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_PREFIX)
        if tensor.dtype not in FLOAT_DTYPES:
            problems.append(f"{full_name}: expected a floating-point dtype, got {tensor.dtype}")
        elif name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            up = tensors.get(full_name.replace(".lora_A.", ".lora_B."))
            problem = _pair_problem(module, tensor, up, shapes)
            if problem is None and up is not None:
                pairs[f"{module}.weight"] = _Pair(tensor, up, _scale(alphas.of(module), tensor.shape[0], settings))
            else:
                problems.append(f"{full_name}: {problem}")
        elif name.endswith((".lora_embedding_A", ".lora_embedding_B")):
            problems.append(f"{full_name}: adapts an embedding, which is not supported; merge it with peft")
        elif name.endswith(".lora_B.weight"):
            if full_name.replace(".lora_B.", ".lora_A.") not in tensors:
                problems.append(f"{full_name}: its lora_A is missing")
        else:  # trained whole: modules_to_save, biases
            target = re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", name)
            if target not in shapes:
                problems.append(f"{full_name}: the model has no {target}")
            elif tensor.shape != shapes[target]:
                problems.append(f"{full_name}: expected shape {shapes[target]}, got {tensor.shape}")
            else:
                replaced[target] = tensor
    return pairs, replaced, problems


def _pair_problem(module: str, down: StoredTensor, up: StoredTensor | None, shapes: Mapping[str, Shape]) -> str | None:
    if up is None:
        return "its lora_B is missing"
    if f"{module}.weight" not in shapes:
        return f"the model has no {module}.weight"
    shape = shapes[f"{module}.weight"]
    if len(shape) != 2:
        return f"adapts a weight of shape {shape}; only linear layers can be merged"
    rank = down.shape[0] if down.shape else 0
    if down.shape != (rank, shape[1]) or up.shape != (shape[0], rank):
        return f"lora_A {down.shape} and lora_B {up.shape} do not make a weight of shape {shape}"
    return None


def _scale(alpha: float, rank: int, settings: Mapping[str, Any]) -> float:
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


class _Alphas:
    """The alpha of each layer: from the first pattern that matches the end of its name, as in peft, or the default."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        patterns = settings.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
            raise FormatError(f"alpha_pattern: expected an object of at most {_MAX_PATTERNS} patterns")
        self._patterns = [(Suffix(pattern), _alpha(value, pattern)) for pattern, value in patterns.items()]
        self._default = _alpha(settings.get("lora_alpha", 8), "lora_alpha")
        self._budget = Budget()

    def of(self, module: str) -> float:
        return next((alpha for suffix, alpha in self._patterns if suffix.matches(module, self._budget)), self._default)


def _alpha(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FormatError(f"alpha of {reprlib.repr(name)}: expected a number, got {reprlib.repr(value)}")
    return float(value)
