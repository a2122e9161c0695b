"""Checkpoints: from a folder or weights file to a configuration and all tensors of the model, checked and lazy.

Tensors have the names of Hugging Face checkpoints, with ``git.img_temporal_embedding.{t}`` for the temporal
embeddings, which the published files spell ``img_temperal_embedding``. Neither torch nor safetensors is needed to
read any of the formats, and none of them can run code.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.checkpoints.files import is_folder, is_there, read_json
from gitfast.checkpoints.generation import GenerationDefaults, read_generation
from gitfast.checkpoints.microsoft_keys import config_from_shapes, is_microsoft, rename_microsoft
from gitfast.checkpoints.names import canonical_name
from gitfast.checkpoints.pickle_reader import read_pickle
from gitfast.checkpoints.safetensors_reader import read_safetensors
from gitfast.checkpoints.state_dict import without_wrappers
from gitfast.checkpoints.stored_tensor import FLOAT_DTYPES, StoredTensor
from gitfast.errors import CheckpointError, ConfigError

# In the order in which they are looked for.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
)
_MAX_SHARDS = 256
_MAX_PROBLEMS = 50  # listed in one error

Shape = tuple[int, ...]


class Weights(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name, each read when asked for and not kept.

    Arrays are C-contiguous float32 or float16 and must not be written to: what is stored so is a view of the file,
    mapped into memory; bfloat16 and float64 are converted to float32. Copy what has to outlive a change of the file.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        config: The shapes of the model.
        weights: Exactly the tensors that ``expected_tensors(config)`` names, with these shapes.
        folder: The folder to look for tokenizer and preprocessor files in.
        generation: The generation options it asks for.
    """

    config: GitConfig
    weights: Mapping[str, np.ndarray]
    folder: Path
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint. Headers are read and checked; weights are read when they are asked for.

    Args:
        path: A folder, or the weights file in one. The folder holds config.json and, in the order of preference,
            model.safetensors, pytorch_model.bin, either in shards with an index, or Microsoft's model.pt. With
            Microsoft's tensors config.json may be missing.

    Raises:
        CheckpointError: no weights, a damaged file, or tensors that do not match the configuration: the message
            names the file and lists what is missing, unexpected or of another shape.
        ConfigError: config.json is missing or wrong.
    """
    path = Path(path)
    if not is_there(path):
        raise CheckpointError(f"{path}: no such file or folder")
    folder = path.parent
    if is_folder(path):
        folder, path = path, _weight_file(path)
    tensors, microsoft = _named_tensors(path)
    config, generation = _read_config(folder, path, tensors if microsoft else None)
    if (config.tie_word_embeddings or microsoft) and "git.embeddings.word_embeddings.weight" in tensors:
        tensors.setdefault("output.weight", tensors["git.embeddings.word_embeddings.weight"])
    _check_tensors(tensors, config, path)
    return Checkpoint(config=config, weights=Weights(tensors), folder=folder, generation=generation)


def _named_tensors(path: Path) -> tuple[dict[str, StoredTensor], bool]:
    """Return a model's tensors by Hugging Face names, and whether the file had Microsoft's names."""
    stored = read_tensors(path)
    try:
        stored = without_wrappers(stored)
        microsoft = is_microsoft(stored)
        if microsoft:
            stored = rename_microsoft(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors: dict[str, StoredTensor] = {}
    for full_name, tensor in stored.items():
        name = canonical_name(full_name)
        if _is_ignored(name):
            continue
        if name in tensors:
            raise CheckpointError(f"{path}: holds {name} twice, in both spellings")
        tensors[name] = tensor
    return tensors, microsoft


def expected_tensors(config: GitConfig) -> dict[str, Shape]:
    """Return the name and shape of every tensor of a model, in the order of the published files."""
    width, vision_width = config.hidden_size, config.vision_config.hidden_size
    shapes: dict[str, Shape] = {
        "git.embeddings.word_embeddings.weight": (config.vocab_size, width),
        "git.embeddings.position_embeddings.weight": (config.max_position_embeddings, width),
        **_norm("git.embeddings.LayerNorm", width),
    }
    shapes |= _vision_tensors(config.vision_config)
    for i in range(config.num_hidden_layers):
        layer, inner = f"git.encoder.layer.{i}", config.intermediate_size
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{name}", width, width)
        shapes |= _linear(f"{layer}.attention.output.dense", width, width)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", width)
        shapes |= _linear(f"{layer}.intermediate.dense", inner, width)
        shapes |= _linear(f"{layer}.output.dense", width, inner)
        shapes |= _norm(f"{layer}.output.LayerNorm", width)
    shapes |= _linear("git.visual_projection.visual_projection.0", width, vision_width)
    shapes |= _norm("git.visual_projection.visual_projection.1", width)
    for t in range(config.num_image_with_embedding or 0):
        shapes[f"git.img_temporal_embedding.{t}"] = (1, 1, vision_width)
    return shapes | _linear("output", config.vocab_size, width)


def num_parameters(config: GitConfig) -> int:
    """Count the values in all tensors of a model; 176,619,066 for git-base."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())


def _vision_tensors(config: GitVisionConfig) -> dict[str, Shape]:
    width, inner, root = config.hidden_size, config.intermediate_size, "git.image_encoder.vision_model"
    shapes: dict[str, Shape] = {
        f"{root}.embeddings.class_embedding": (width,),
        f"{root}.embeddings.patch_embedding.weight": (width, config.num_channels, config.patch_size, config.patch_size),
        f"{root}.embeddings.position_embedding.weight": (config.num_tokens, width),
        **_norm(f"{root}.pre_layrnorm", width),  # the published spelling
    }
    for i in range(config.num_hidden_layers):
        layer = f"{root}.encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width)
        shapes |= _linear(f"{layer}.mlp.fc2", width, inner)
        shapes |= _norm(f"{layer}.layer_norm2", width)
    return shapes | _norm(f"{root}.post_layernorm", width)


def _linear(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _is_ignored(name: str) -> bool:
    """Recognise buffers that older files hold, and CLIP's own projection, which GIT does not use."""
    return name.endswith((".embeddings.position_ids", "image_encoder.proj", "image_encoder.visual_projection.weight"))


def _weight_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if is_there(folder / name):  # and when it is no regular file, its reader says so
            return folder / name
    if is_there(folder / "adapter_config.json"):
        raise CheckpointError(f"{folder}: an adapter, not a model")
    hint = ""
    if inner := sorted(
        p.name for p in folder.glob("checkpoint-*") if any((p / name).is_file() for name in WEIGHT_FILES)
    ):
        hint = f"; did you mean one of its folders {', '.join(inner)}?"
    raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)}{hint}")


def _read_config(
    folder: Path, path: Path, tensors: Mapping[str, StoredTensor] | None
) -> tuple[GitConfig, GenerationDefaults]:
    """Read config.json with the token ids that count; without one, derive the configuration from ``tensors``."""
    file = folder / "config.json"
    if tensors is None or is_there(file):
        values, generation = read_generation(folder, read_json(file))
        try:
            return GitConfig.from_dict(values), generation
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    try:
        return config_from_shapes(tensors), GenerationDefaults()
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read all tensors of a weights file, or of all shards an index names, by their names in the file.

    Raises:
        CheckpointError: a file cannot be read or is damaged; the message names it.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map is not an object that gives the file of each tensor")
    shards = sorted(set(weight_map.values()))
    if len(shards) > _MAX_SHARDS:
        raise CheckpointError(f"{index}: names {len(shards)} files; at most {_MAX_SHARDS}")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        if Path(shard).name != shard or Path(shard).suffix != suffix:
            raise CheckpointError(f"{index}: {reprlib.repr(shard)} is not the name of a {suffix} file beside it")
        found = read_tensors(index.parent / shard)
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(f"{index.parent / shard}: holds tensors of another shard too: {', '.join(twice)}")
        if absent := sorted(name for name, file in weight_map.items() if file == shard and name not in found):
            raise CheckpointError(f"{index.parent / shard}: lacks tensors the index places there: {', '.join(absent)}")
        tensors |= found
    return tensors


def listed(problems: list[str]) -> str:
    """Format the first 50 problems, one a line."""
    more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    return "\n  ".join(problems[:_MAX_PROBLEMS] + more)


def _check_tensors(tensors: Mapping[str, StoredTensor], config: GitConfig, path: Path) -> None:
    """Check names, shapes and dtypes against the configuration; one error lists all that differ."""
    expected = expected_tensors(config)
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    for name in expected.keys() & tensors.keys():
        tensor = tensors[name]
        if tensor.shape != expected[name]:
            problems.append(f"{name}: expected shape {expected[name]}, got {tensor.shape}")
        elif tensor.dtype not in FLOAT_DTYPES:
            problems.append(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
    if problems:
        held = sum(math.prod(tensor.shape) for tensor in tensors.values())
        described = sum(math.prod(shape) for shape in expected.values())
        raise CheckpointError(
            f"{path}: holds {held} values, config.json describes {described}; they differ in {len(problems)}:\n  "
            + listed(problems)
        )
