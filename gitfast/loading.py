"""``gitfast.load``: from the name of a model to a model that is ready."""

from __future__ import annotations

import os
from pathlib import Path

from gitfast.checkpoints import hub
from gitfast.engines.caching import CachingEngine
from gitfast.engines.registry import create_engine
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
    prefix_cache_bytes: int | None = None,
    preprocess: Preprocess = "hf",
    limits: Limits = DEFAULT_LIMITS,
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
        dtype: Of the weights: "float32" (not cuda); "bfloat16"; "float16" (not cpu); "int8" (one scale per output
            channel of the decoder, bfloat16 in the vision encoder; not reference); "float8" (the same; cuda). "auto" is
            float32, and bfloat16 for cuda. Sums are float32 always.
        prefix_dtype: Of the encoding of images: "auto", or "int8" (cuda): half the bytes of bfloat16, less exact.
        num_threads: Threads of the CPU engine; None takes ``GITFAST_NUM_THREADS`` or the processors there are.
        prefix_cache_bytes: Keep the encoding of images seen lately, up to this many bytes (7.3 MB for an image of
            git-base in float32); ``model.engine.cache_stats`` counts hits. None: keep none.
        preprocess: "hf" as transformers, "original" as Microsoft's code (``ImageProcessor.original``), "fast" as "hf"
            with large JPEGs decoded at a fraction of their size: not exact (``ImageProcessor.fast``).
        limits: What an image or a video may cost; see ``gitfast.Limits``.
        revision, cache_dir, local_files_only, token: As in huggingface_hub.

    Raises:
        CheckpointError, ConfigError: the model is not there, or a file of it is damaged; the message names it.
        EngineError: the engine cannot run here, or not with these dtypes.
    """
    checkpoint = hub.open_model(
        model, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    processor = Processor.from_folder(checkpoint.folder, checkpoint.config, preprocess=preprocess, limits=limits)
    chosen = create_engine(
        engine,
        checkpoint,
        dtype=dtype,
        prefix_dtype=prefix_dtype,
        num_threads=num_threads,
        normalization=processor.image_processor.normalization,
    )
    if prefix_cache_bytes is not None:
        chosen = CachingEngine(chosen, prefix_cache_bytes)
    values = {
        "model": os.path.abspath(model) if os.path.exists(model) else os.fspath(model),
        "engine": engine,
        "dtype": dtype,
        "prefix_dtype": prefix_dtype,
        "num_threads": num_threads,
        "prefix_cache_bytes": prefix_cache_bytes,
        "preprocess": preprocess,
        "limits": limits,
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    return Model(chosen, processor, checkpoint.config, name=os.fspath(model)).remember(load, values)
