"""Any checkpoint that can be opened, written as a Hugging Face folder with safetensors."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np

from gitfast.checkpoints.checkpoint import Checkpoint
from gitfast.errors import CheckpointError
from gitfast.inputs.image import ImageProcessor

DTYPES = ("float32", "float16", "bfloat16")
_COPIED = (
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path, dtype: str = "float32") -> Path:
    """Write config.json, model.safetensors, and the tokenizer and preprocessor files that the checkpoint came with.

    Tensors have the names transformers 5 gives them. Without preprocessor files the settings of the configuration are
    written; without tokenizer files there is a warning, and one has to be added.

    Args:
        folder: Made when it is not there. It must not hold a model yet.
        dtype: Of the tensors: "float32", "float16" or "bfloat16", rounded to nearest even.

    Raises:
        CheckpointError: the folder holds a model; a tensor cannot be represented in ``dtype``.
        ValueError: another dtype.
    """
    from safetensors import TensorSpec, serialize_file

    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    if path.exists():
        raise CheckpointError(f"{folder}: holds a model already")
    kept = {name: _convert(name, values, dtype) for name, values in checkpoint.weights.items()}  # specs hold pointers
    tensors = {
        name: TensorSpec(dtype=dtype, shape=values.shape, data_ptr=values.ctypes.data, data_len=values.nbytes)
        for name, values in kept.items()
    }
    partial = path.with_suffix(".partial")
    serialize_file(tensors, str(partial), {"format": "pt"})
    partial.replace(path)  # whoever finds the file finds all of it

    config = {"architectures": ["GitForCausalLM"], **checkpoint.config.to_dict(), "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_processor_files(checkpoint, folder)
    return folder


def _write_processor_files(checkpoint: Checkpoint, folder: Path) -> None:
    for name in _COPIED:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    if not (folder / "preprocessor_config.json").exists():
        settings = ImageProcessor.for_config(checkpoint.config).to_dict()
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if not ((folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()):
        warnings.warn(f"{checkpoint.folder}: no tokenizer; add BERT's vocab.txt to {folder}", stacklevel=3)


def _convert(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return _to_bfloat16(np.ascontiguousarray(values, np.float32))
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(values, dtype)
    if np.isinf(converted).any() and not np.isinf(values).any():
        raise CheckpointError(f"{name}: holds {np.abs(values).max():.4g}, too large for {dtype}")
    return converted


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 as uint16, rounded to nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
