"""``gitfast.load``: from the name of a model to a model that is ready."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gitfast import arguments
from gitfast.checkpoints import hub
from gitfast.engines.caching import CachingEngine
from gitfast.engines.registry import create_engine
from gitfast.errors import ArgumentError
from gitfast.inputs.limits import DEFAULT_LIMITS, Limits
from gitfast.inputs.processor import Preprocess, Processor
from gitfast.model import Model


def load(
    model: str | os.PathLike[str] = "git-tiny",
    *,
    engine: str = "auto",
    dtype: str = "auto",
    prefix_dtype: str = "auto",
    num_threads: int | None = None,
    num_lanes: int | None = None,
    prefix_cache_bytes: int | None = None,
    preprocess: Preprocess = "hf",
    limits: Limits = DEFAULT_LIMITS,
    base: str | os.PathLike[str] | None = None,
    processor: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Model:
    """Load a GIT checkpoint.

    Args:
        model: A folder, also that of a LoRA adapter; a published checkpoint ("base-coco", "microsoft/git-base-coco");
            any repository of the Hub; or a bundled demonstration model: "git-tiny" (images), "git-tiny-video" (clips).
        engine: "cpu", "cuda", "reference" (PyTorch), or "auto": the CPU engine, wherever it runs.
        dtype: The weights' dtype: "float32" (not cuda); "bfloat16"; "float16" (not cpu); "int8" (one scale per output
            channel, for cuda of the decoder alone; not reference); "w8a8" (cpu: int8, and activations of 8 bits: faster
            where the CPU multiplies those, and less exact); "float8" (cuda: the decoder's). "auto" is float32, and
            bfloat16 for cuda. Sums are float32 always.
        prefix_dtype: The dtype of image prefixes: "auto", or "int8" (cuda): half the bytes of bfloat16, less exact.
        num_threads: Threads of each lane of the CPU engine. None: ``GITFAST_NUM_THREADS``, or the CPUs that this
            process may use, shared by the lanes.
        num_lanes: Lanes of the CPU engine: crews of threads over one copy of the weights that work on different images
            and texts. More lanes of fewer threads do more at once, and take longer for one. None: one, or on 32 CPUs
            and more one for each 16.
        prefix_cache_bytes: Keep the prefixes of recent images, up to this many bytes (7.3 MB for an image of git-base
            in float32); ``model.engine.cache_stats`` counts hits. None: keep none.
        preprocess: "hf" as transformers, "original" as Microsoft's code (``ImageProcessor.original``), "fast" as "hf"
            with large JPEGs decoded at a fraction of their size: not exact (``ImageProcessor.fast``).
        limits: Limits on the cost of an image or a video; see ``gitfast.Limits``.
        base: The model that an adapter is merged into, named as ``model``; None: the one that the adapter names.
        processor: The source of the tokenizer and preprocessor files, named as ``model``, for a checkpoint that has
            none; None: the model itself.
        revision: A branch, tag or commit of the repository, as in huggingface_hub.
        cache_dir: The folder for downloads; None: huggingface_hub's.
        local_files_only: Take what is in the cache, and never ask the network.
        token: For private repositories, as in huggingface_hub.

    Raises:
        ArgumentError: an argument that cannot be; the message names it.
        CheckpointError: the model is not there, or a file of it is damaged; the message names it.
        ConfigError: a value of its configuration cannot be; the message names file and key.
        EngineError: the engine cannot run here, or not with these dtypes.
        ValueError: threads or lanes for an engine that has none of its own.
    """
    for name, value in (("model", model), ("base", base), ("processor", processor)):
        if not isinstance(value, (str, os.PathLike)) and (value is not None or name == "model"):
            raise ArgumentError(f"{name}: expected a name or a path, got {arguments.shown(value)}")
    if num_threads is not None:
        num_threads = arguments.integer("num_threads", num_threads, minimum=0)
    if num_lanes is not None:
        num_lanes = arguments.integer("num_lanes", num_lanes, minimum=0)
    where: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    checkpoint = hub.open_model(model, base=base, revision=revision, **where)
    folder = checkpoint.folder if processor is None else hub.resolve_processor(processor, **where)
    inputs = Processor.from_folder(folder, checkpoint.config, preprocess=preprocess, limits=limits)
    chosen = create_engine(
        engine,
        checkpoint,
        dtype=dtype,
        prefix_dtype=prefix_dtype,
        num_threads=num_threads,
        num_lanes=num_lanes,
        normalization=inputs.image_processor.normalization,
    )
    if prefix_cache_bytes is not None:
        chosen = CachingEngine(chosen, prefix_cache_bytes)
    values = {
        "model": _lasting(model),
        "engine": engine,
        "dtype": dtype,
        "prefix_dtype": prefix_dtype,
        "num_threads": num_threads,
        "num_lanes": num_lanes,
        "prefix_cache_bytes": prefix_cache_bytes,
        "preprocess": preprocess,
        "limits": limits,
        "base": None if base is None else _lasting(base),
        "processor": None if processor is None else _lasting(processor),
        "revision": revision,
        "cache_dir": None if cache_dir is None else os.path.abspath(cache_dir),
        "local_files_only": local_files_only,
    }
    made = Model(chosen, inputs, checkpoint.config, os.fspath(model), checkpoint.generation)
    return made.remember(load, values)


def _lasting(name: str | os.PathLike[str]) -> str:
    """Return a name that means the same in any working directory."""
    return os.path.abspath(name) if os.path.exists(name) else os.fspath(name)
