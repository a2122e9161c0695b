"""Folders of pictures for tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def photos(image_files, tmp_path) -> Path:
    """Five images, one of them in a folder within, and one that is damaged."""
    folder = tmp_path / "photos"
    (folder / "within").mkdir(parents=True)
    for file in image_files:
        inside = "within" if file.name == "2.png" else "."
        (folder / inside / file.name).write_bytes(file.read_bytes())
    (folder / "bad.png").write_bytes(b"\x89PNG, but no more than that")
    return folder
