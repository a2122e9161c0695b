"""Models by name: from an alias, a Hugging Face repository or a path to a local folder."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from gitfast.checkpoints.adapter import apply_adapter, base_model_name, is_adapter
from gitfast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gitfast.errors import CheckpointError

BUNDLED = ("git-tiny", "git-tiny-video")
PUBLISHED = tuple(
    f"microsoft/git-{name}"
    for name in (
        "base",
        "base-coco",
        "base-textcaps",
        "base-vqav2",
        "base-textvqa",
        "base-vatex",
        "base-msrvtt-qa",
        "large",
        "large-coco",
        "large-textcaps",
        "large-vqav2",
        "large-textvqa",
        "large-vatex",
        "large-msrvtt-qa",
        "large-r",
        "large-r-coco",
        "large-r-textcaps",
    )
)
# Both "base-coco" and "git-base-coco" mean "microsoft/git-base-coco".
ALIASES = {
    alias: name
    for name in PUBLISHED
    for alias in (name.removeprefix("microsoft/"), name.removeprefix("microsoft/git-"))
}

# What is fetched of a repository: the small files, and the weights in the first of these forms that it has.
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "adapter_config.json",
)
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "adapter_model.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin", "adapter_model.bin"),
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def open_model(model: str | os.PathLike[str], **options: Any) -> Checkpoint:
    """Open a model by name, as ``resolve`` finds it (options as there); a LoRA adapter is merged into its base model.

    Raises:
        CheckpointError, ConfigError: as ``resolve``, ``open_checkpoint`` and ``apply_adapter``.
    """
    folder = resolve(model, **options)
    if not is_adapter(folder):
        return open_checkpoint(folder)
    base = resolve(base_model_name(folder), **{**options, "revision": None})
    return apply_adapter(folder, open_checkpoint(base))


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The local folder of a model; what is not there yet is downloaded into huggingface_hub's cache.

    Args:
        model: A folder, or a weights file in one; a bundled model ("git-tiny", "git-tiny-video"); a published
            checkpoint ("base-coco", "git-base-coco"); or a Hugging Face repository ("microsoft/git-base-coco"). A
            folder of that name wins.
        revision: Branch, tag or commit of a repository.
        cache_dir: Where downloads are kept; None takes huggingface_hub's.
        local_files_only: Never use the network. ``HF_HUB_OFFLINE=1`` does the same.
        token: For private repositories, as in huggingface_hub.

    Raises:
        CheckpointError: there is no such model, or it is not in the cache and cannot be fetched; the message says
            which, and suggests the nearest known name.
    """
    name = os.fspath(model)
    if name and (Path(name).is_dir() or (Path(name).suffix in _WEIGHT_SUFFIXES and Path(name).is_file())):
        return Path(name)
    if name in BUNDLED:
        return _bundled(name)
    repository = ALIASES.get(name, name)
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise CheckpointError(f"{name}: not a folder, and not a known model{_suggestion(name)}")
    return _download(repository, revision, cache_dir, local_files_only, token)


def _bundled(name: str) -> Path:
    """Inside an installed package, or beside the package in a source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "models" / name, package.parent / "models" / name):
        if folder.is_dir():
            return folder
    raise CheckpointError(f"{name}: the bundled model is not part of this installation")


def _download(
    repository: str,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    token: str | bool | None,
) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    name = repository if revision is None else f"{repository}, revision {revision}"
    not_cached = None
    for weights in _WEIGHTS:
        try:
            folder = snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[*_SMALL_FILES, *weights],
            )
        except LocalEntryNotFoundError as error:  # perhaps only the other form of the weights is cached
            not_cached = error
            continue
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{name}: neither a folder nor a public repository of the Hub{_suggestion(repository)}"
            ) from error
        except Exception as error:  # of the file system, the HTTP client or Xet, different in every version
            raise CheckpointError(f"{name}: cannot be fetched: {error}") from error
        if any(next(Path(folder).glob(pattern), None) for pattern in weights):
            return Path(folder)
    if not_cached is None:
        raise CheckpointError(f"{name}: holds no weights in a format that is read")
    why = "local_files_only" if local_files_only else "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "no connection"
    raise CheckpointError(
        f"{name}: not in the cache {cache_dir or constants.HF_HUB_CACHE}, and the Hub is not asked ({why})"
    ) from not_cached


def _suggestion(name: str) -> str:
    """The nearest name that would have worked, or the list of short names."""
    known = [*BUNDLED, *PUBLISHED, *ALIASES]
    near = difflib.get_close_matches(name[:100], known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    short = sorted(alias for alias in ALIASES if not alias.startswith("git-"))
    return f"; known are {', '.join([*BUNDLED, *short])}, and any folder or 'owner/name' of the Hub"
