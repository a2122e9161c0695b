"""Small checkpoints with random weights, for tests of everything above the engines."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from support.tiny_checkpoint import random_image, write_checkpoint

# Checks before a change lands must not depend on luck; run by hand, every run tries other examples.
hypothesis.settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("image-model"))


@pytest.fixture(scope="session")
def video_checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small video checkpoint of three frames."""
    return write_checkpoint(tmp_path_factory.mktemp("video-model"), num_image_with_embedding=3)


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five PNG files."""
    folder = tmp_path_factory.mktemp("images")
    files = [folder / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        random_image(i).save(file)
    return files
