"""Names of models: folders, bundled models, aliases, repositories; and the cache without a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import gitfast
from gitfast.checkpoints import hub
from gitfast.errors import CheckpointError

from support.tiny_checkpoint import write_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, repository: str, *names: str, revision: str = "main") -> Path:
    """A snapshot in huggingface_hub's layout, holding a small checkpoint or only files of these names."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    write_checkpoint(snapshot)
    if names:
        for path in snapshot.iterdir():
            if path.name not in names:
                path.unlink()
    return snapshot


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of snapshot_download, which answers as it does offline."""
    calls = []

    def download(repository: str, **arguments: Any) -> str:
        calls.append({"repository": repository, **arguments})
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_folder_is_itself_and_wins_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "base-coco")
    assert hub.resolve(folder) == folder
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("base-coco") == Path("base-coco")


def test_bundled_models_are_found() -> None:
    folder = hub.resolve("git-tiny")
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["base-coco", "git-base-coco", "microsoft/git-base-coco"])
def test_aliases(asked: list[dict[str, Any]], name: str) -> None:
    with pytest.raises(CheckpointError, match="not in the cache"):
        hub.resolve(name)
    assert {call["repository"] for call in asked} == {"microsoft/git-base-coco"}


def test_there_are_seventeen_published_checkpoints() -> None:
    assert len(set(hub.PUBLISHED)) == 17
    assert hub.ALIASES["large-r-textcaps"] == "microsoft/git-large-r-textcaps"


def test_arguments_reach_the_hub_and_safetensors_come_first(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        hub.resolve("someone/model", revision="v2", cache_dir=tmp_path, local_files_only=True, token="secret")
    first, second = asked
    assert first["revision"] == "v2"
    assert first["cache_dir"] == tmp_path
    assert first["local_files_only"] is True
    assert first["token"] == "secret"
    assert "model.safetensors" in first["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in first["allow_patterns"])
    assert "pytorch_model.bin" in second["allow_patterns"]
    assert not any(".py" in pattern for call in asked for pattern in call["allow_patterns"] if pattern[:7] != "pytorch")


def test_a_cached_model_is_loaded_offline(tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, "microsoft/git-base-coco")
    assert hub.resolve("base-coco", cache_dir=tmp_path, local_files_only=True) == snapshot
    model = gitfast.load("base-coco", cache_dir=tmp_path, local_files_only=True)
    assert model.name == "base-coco"


def test_a_revision_is_a_ref_of_the_cache(tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, "a/b", revision="v2")
    assert hub.resolve("a/b", revision="v2", cache_dir=tmp_path, local_files_only=True) == snapshot
    with pytest.raises(CheckpointError, match=r"a/b, revision v3: not in the cache .* \(local_files_only\)"):
        hub.resolve("a/b", revision="v3", cache_dir=tmp_path, local_files_only=True)


def test_a_repository_without_weights(tmp_path: Path) -> None:
    fill_cache(tmp_path, "a/b", "config.json")
    with pytest.raises(CheckpointError, match="a/b: holds no weights in a format that is read"):
        hub.resolve("a/b", cache_dir=tmp_path, local_files_only=True)


def test_offline_without_a_cache_says_so(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError, match=r"microsoft/git-large: not in the cache .*, and the Hub is not asked"):
        hub.resolve("large", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base-cocoo", "did you mean '.*base-coco'"),
        ("photo.jpg", "not a folder, and not a known model"),
        ("../../nowhere", "not a folder, and not a known model"),
        ("a/b/c", "not a folder, and not a known model"),
        ("", "not a folder, and not a known model"),
        (f"x{os.sep}..", "not a folder"),
    ],
)
def test_unknown_names(asked: list[dict[str, Any]], name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        hub.resolve(name)
    assert asked == []
