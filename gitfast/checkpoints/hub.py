"""Models by name: from an alias, a Hugging Face repository or a path to a local folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gitfast import arguments
from gitfast.checkpoints.adapter import CONFIG_FILE, apply_adapter, base_model, is_adapter
from gitfast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gitfast.checkpoints.fetching import StalledError, ask, fetch
from gitfast.checkpoints.files import is_folder, is_there
from gitfast.checkpoints.published import SHAPES
from gitfast.errors import ArgumentError, CheckpointError

BUNDLED = ("git-tiny", "git-tiny-video")
PUBLISHED = tuple(f"microsoft/{name}" for name in SHAPES)
# Both "base-coco" and "git-base-coco" mean "microsoft/git-base-coco".
ALIASES = {
    alias: name
    for name in PUBLISHED
    for alias in (name.removeprefix("microsoft/"), name.removeprefix("microsoft/git-"))
}

# Files fetched from a repository: the small ones, and the weights in the first of these forms that it has.
_SMALL_FILES = (
    "added_tokens.json",
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
_MAX_PATH = 4_000
_MAX_SHOWN = 200
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def open_model(
    model: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None, **options: Any
) -> Checkpoint:
    """Open a model by name (options as in ``resolve``); a LoRA adapter is merged into its base model.

    Args:
        model: The model, or an adapter.
        base: The model to merge an adapter into, any name that ``resolve`` takes. None: the one the adapter names.

    Raises:
        CheckpointError, ConfigError: as ``resolve``, ``open_checkpoint`` and ``apply_adapter``; or ``base`` where the
            model is no adapter.
    """
    folder = resolve(model, **options)
    if not is_adapter(folder):
        if base is not None:
            raise CheckpointError(f"{os.fspath(model)}: no adapter, so it has no base model to be {os.fspath(base)}")
        return open_checkpoint(folder)
    options = {**options, "revision": None}  # what was given is the adapter's
    found = _adapter_base(folder, options) if base is None else resolve(base, **options)
    return apply_adapter(folder, open_checkpoint(found))


def _adapter_base(folder: Path, options: dict[str, Any]) -> Path:
    """Return the base model an adapter names: a path, relative to the adapter first, or a repository.

    Short names are not taken: "base" in an adapter is the folder of its author, not a model of that alias.
    """
    name, revision = base_model(folder)
    problem = "no such folder, and no repository of the Hub has such a name"
    try:
        for path in (folder / name, folder.parent / name, Path(name)):
            if _is_model_path(path):
                return path
        if _is_repository(name):
            return _download(name, **{**options, "revision": revision})
    except CheckpointError as error:
        problem = str(error)
    raise CheckpointError(
        f"{folder / CONFIG_FILE}: base_model_name_or_path {_shortened(name)!r} is not found ({problem}); "
        "name the base model with base="
    )


def resolve_processor(
    folder: str | os.PathLike[str],
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Find the local folder of the tokenizer and preprocessor files of any model, named as in ``resolve``.

    Raises:
        CheckpointError: as ``resolve``; the weights of a repository are not fetched, nor needed.
    """
    options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    return _find(folder, lambda repository: _download(repository, **options, weights=((),)))


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Return the local folder of a model, downloading missing files into huggingface_hub's cache.

    Args:
        model: A folder, or a weights file in one; a bundled model ("git-tiny", "git-tiny-video"); a published
            checkpoint ("base-coco", "git-base-coco"); or a Hugging Face repository ("microsoft/git-base-coco"). A
            folder of that name wins.
        revision: Branch, tag or commit of a repository.
        cache_dir: The folder for downloads; None takes huggingface_hub's.
        local_files_only: Never use the network. ``HF_HUB_OFFLINE=1`` does the same.
        token: For private repositories, as in huggingface_hub.

    Raises:
        CheckpointError: there is no such model, or it is not in the cache and cannot be fetched; the message says
            which, and suggests the nearest known name.
    """
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "token": token,
    }
    return _find(model, lambda repository: _download(repository, **options))


def _find(model: str | os.PathLike[str], download: Callable[[str], Path]) -> Path:
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    if not isinstance(name, str):
        raise ArgumentError(f"model: expected a name or a path, got {arguments.shown(model)}")
    if name and _is_model_path(Path(name)):
        return Path(name)
    if name in BUNDLED:
        return _bundled(name)
    repository = ALIASES.get(name, name)
    if not _is_repository(repository):
        raise CheckpointError(f"{_shortened(name)}: not a folder, and not a known model{_suggestion(name)}")
    return download(repository)


def _is_model_path(path: Path) -> bool:
    """Return whether a path is an existing folder or weights file."""
    if len(os.fspath(path)) > _MAX_PATH:
        return False
    return is_folder(path) or (path.suffix in _WEIGHT_SUFFIXES and is_there(path))


def _is_repository(name: str) -> bool:
    return bool(_REPOSITORY.fullmatch(name)) and ".." not in name and "--" not in name


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."


def _bundled(name: str) -> Path:
    """Find a bundled model: inside an installed package, or beside the package in a source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "models" / name, package.parent / "models" / name):
        if folder.is_dir():
            return folder
    raise CheckpointError(f"{name}: the bundled model is not part of this installation")


def _download(
    repository: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    weights: Sequence[Sequence[str]] = _WEIGHTS,
) -> Path:
    """Download a repository, with its weights in the first of these forms that it has; return the folder."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    name = repository if revision is None else f"{repository}, revision {revision}"
    not_cached = None
    asked = not local_files_only and not constants.HF_HUB_OFFLINE
    silence = None if not asked or _answers(repository, revision, token) else "does not answer"

    def snapshot(patterns: Sequence[str]) -> str:
        return fetch(
            repository,
            cache_dir,
            revision=revision,
            local_files_only=local_files_only or silence is not None,
            token=token,
            allow_patterns=[*_SMALL_FILES, *patterns],
        )

    for patterns in weights:
        try:
            try:
                folder = snapshot(patterns)
            except StalledError as error:
                silence = f"is too slow: {error}"
                folder = snapshot(patterns)  # of the cache
        except LocalEntryNotFoundError as error:  # perhaps only the other form of the weights is cached
            not_cached = error
            continue
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{name}: neither a folder nor a public repository of the Hub{_suggestion(repository)}"
            ) from error
        except Exception as error:  # from the file system, the HTTP client or Xet, different in every version
            raise CheckpointError(f"{name}: cannot be fetched: {error}") from error
        if not patterns or any(next(Path(folder).glob(pattern), None) for pattern in patterns):
            return Path(folder)
    if not_cached is None:
        raise CheckpointError(f"{name}: holds no weights in a format that is read")
    if asked:
        why = f"the Hub, {constants.ENDPOINT}, {silence or 'does not answer'}"
    else:
        why = f"the Hub is not asked ({'local_files_only' if local_files_only else 'HF_HUB_OFFLINE'})"
    raise CheckpointError(f"{name}: not in the cache {cache_dir or constants.HF_HUB_CACHE}, and {why}") from not_cached


def _answers(repository: str, revision: str | None, token: str | bool | None) -> bool:
    """Return whether the Hub answers in time. ``snapshot_download`` waits for its first answer for ever."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        ask(lambda: HfApi().repo_info(repository, revision=revision, token=token, timeout=timeout))
    except HfHubHTTPError:  # no such repository, or not for this token: what asks for files says so
        return True
    except Exception:  # from the HTTP client, different in every version
        return False
    return True


def _suggestion(name: str) -> str:
    """Suggest the nearest name that would have worked, or the list of short names."""
    known = [*BUNDLED, *PUBLISHED, *ALIASES]
    near = difflib.get_close_matches(name[:100], known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    short = sorted(alias for alias in ALIASES if not alias.startswith("git-"))
    return f"; known are {', '.join([*BUNDLED, *short])}, and any folder or 'owner/name' of the Hub"
