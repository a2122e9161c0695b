"""The command line of sd-scripts, as people's scripts call it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import EXAMPLES
from support.processes import ENVIRONMENT, PYTHON

NAMES = ("five-red-squares", "a-large-orange-square")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deeper").mkdir()
    for name, place in zip(NAMES, (tmp_path, tmp_path / "deeper"), strict=True):
        shutil.copy(EXAMPLES / "images" / f"{name}.png", place)
    return tmp_path


def run(*arguments: str | Path) -> str:
    command = [*PYTHON, EXAMPLES / "make_captions_by_git.py", *arguments, "--model_id", "git-tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_captions_stand_beside_pictures(folder: Path) -> None:
    (folder / "five-red-squares.caption").write_text("an old caption")
    run(folder, "--batch_size", "2", "--max_data_loader_n_workers", "2", "--remove_words")
    assert (folder / "five-red-squares.caption").read_text().strip() == "five red squares"
    assert not list(folder.rglob("deeper/*.caption"))


def test_folders_of_a_folder_and_another_ending(folder: Path) -> None:
    run(folder, "--recursive", "--caption_extension", ".txt", "--max_length", "3")
    texts = {path.stem: path.read_text().strip() for path in folder.rglob("*.txt")}
    assert texts == {"five-red-squares": "five red", "a-large-orange-square": "a large"}  # and the token before them


def test_flags_without_effect_here(folder: Path) -> None:
    run(folder, "--debug", "--pin_memory")
    assert (folder / "five-red-squares.caption").read_text().strip() == "five red squares"
