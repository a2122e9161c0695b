"""Conversion of any checkpoint that can be opened to a Hugging Face folder with safetensors."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gitfast.checkpoints.checkpoint import WEIGHT_FILES, Checkpoint
from gitfast.checkpoints.files import is_there, read_bytes
from gitfast.errors import CheckpointError
from gitfast.inputs.image import ImageProcessor

DTYPES = ("float32", "float16", "bfloat16")
_WEIGHTS = "model.safetensors"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_COPIED = (
    "added_tokens.json",
    "generation_config.json",
    *_PROCESSOR_FILES,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_MAX_COPIED_BYTES = 64 << 20


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path, dtype: str = "float32") -> Path:
    """Write config.json, model.safetensors, and the tokenizer and preprocessor files that the checkpoint came with.

    Tensors have the names transformers 5 gives them. Without preprocessor files the settings of the configuration are
    written; without tokenizer files there is a warning, and one has to be added. Files are written beside the folder,
    or in a folder inside one that is there, and take their names once all of them are on the disk, the weights last:
    what looks like a model is all of it, whenever the writing ends.

    Args:
        folder: Made when it is not there. It must hold no model, and none of the files that are written.
        dtype: The tensors' dtype: "float32", "float16" or "bfloat16", rounded to nearest even.

    Raises:
        CheckpointError: the folder holds a model or cannot be written; a tensor cannot be represented in ``dtype``.
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    folder = Path(folder)
    _refuse_model(folder)
    texts = _small_files(checkpoint, dtype)
    with _write_errors(folder), _partial_folder(folder) as partial:
        weights = {name: _convert(name, values, dtype) for name, values in checkpoint.weights.items()}
        _write_weights(weights, dtype, partial / _WEIGHTS)
        for name, content in texts.items():
            (partial / name).write_bytes(content)
        for path in (*partial.iterdir(), partial):
            _sync(path)
        _publish(partial, folder)
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        warnings.warn(f"{checkpoint.folder}: no tokenizer; add BERT's vocab.txt to {folder}", stacklevel=2)
    return folder


def _refuse_model(folder: Path) -> None:
    if not is_there(folder):
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to write to, got a file")
    if any(is_there(folder / name) for name in WEIGHT_FILES):
        raise CheckpointError(f"{folder}: holds a model already")


def _small_files(checkpoint: Checkpoint, dtype: str) -> dict[str, bytes]:
    """Return the content of all files but the weights, by name."""
    config = {"architectures": ["GitForCausalLM"], **checkpoint.config.to_dict(), "dtype": dtype}
    files = {"config.json": _json(config)}
    for name in _COPIED:
        if is_there(checkpoint.folder / name):
            files[name] = read_bytes(checkpoint.folder / name, _MAX_COPIED_BYTES)
    if not files.keys() & set(_PROCESSOR_FILES):
        files[_PROCESSOR_FILES[0]] = _json(ImageProcessor.for_config(checkpoint.config).to_dict())
    return files


def _json(values: object) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """Make a folder on the disk of ``folder``, removed unless it takes that name."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
    home = folder if folder.exists() else folder.parent
    partial = home / f".{folder.name[:100]}.{secrets.token_hex(4)}.partial"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Give the files in ``partial`` their names in ``folder``."""
    if partial.parent != folder:
        partial.rename(folder)
        _sync(folder.parent)
        return
    names = sorted(path.name for path in partial.iterdir())
    if taken := [name for name in names if (folder / name).exists()]:
        raise CheckpointError(f"{folder}: holds {', '.join(taken)} already")
    for name in sorted(names, key=lambda name: name == _WEIGHTS):
        (partial / name).rename(folder / name)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(descriptor)


def _write_weights(weights: dict[str, np.ndarray], dtype: str, path: Path) -> None:
    from safetensors import TensorSpec, serialize_file

    tensors = {  # these hold pointers: the arrays must outlive them
        name: TensorSpec(dtype=dtype, shape=values.shape, data_ptr=values.ctypes.data, data_len=values.nbytes)
        for name, values in weights.items()
    }
    serialize_file(tensors, str(path), {"format": "pt"})


def _convert(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return _to_bfloat16(np.ascontiguousarray(values, np.float32))
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(values, dtype)
    if np.isinf(converted).any() and not np.isinf(values).any():
        raise CheckpointError(f"{name}: holds {np.abs(values).max():.4g}, too large for {dtype}")
    return converted


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 as uint16, rounded to nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
