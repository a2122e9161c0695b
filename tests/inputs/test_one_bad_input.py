"""One input that cannot be read is that input's error; the others of the batch keep their results."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import gitfast
from gitfast.errors import ImageError

from support.tiny_checkpoint import CONFIG, random_image, write_checkpoint


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class NoDisk:
    def read(self, size: int = -1) -> bytes:
        raise RuntimeError("the disk is gone")


def damaged_member() -> object:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", png(random_image(1)))
    data = bytearray(buffer.getvalue())
    data[data.index(b"IDAT") + 9] ^= 1
    return zipfile.ZipFile(io.BytesIO(data)).open("a.png")


def bad_images(folder: Path) -> list[object]:
    os.mkfifo(folder / "pipe.png")
    (folder / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return [
        damaged_member(),
        gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(png(random_image(1)))[:-100])),
        NoDisk(),
        folder / "pipe.png",
        folder / "pointer.png",
        folder,
        {"bytes": None, "path": None},
        {"bytes": b"no image", "path": "remote.png"},
        PIL.Image.open(io.BytesIO(png(random_image(1, (300, 300)))[:-200])),
        PIL.Image.new("F", (30, 30)),
        np.zeros((30, 30), np.float32),
        random_image(2, (600, 12)),  # in the original's way 15 pixels high, less than a patch
        None,
        7,
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gitfast.Model:
    vision = {**CONFIG["vision_config"], "image_size": 240, "patch_size": 16}  # type: ignore[dict-item]
    folder = write_checkpoint(tmp_path_factory.mktemp("wide"), vision_config=vision)
    return gitfast.load(folder, preprocess="original")


@pytest.mark.parametrize("workers", [None, 2])
def test_a_batch_outlives_every_bad_image(model: gitfast.Model, tmp_path: Path, workers: int | None) -> None:
    bad = bad_images(tmp_path)
    good = random_image(3)
    expected = model.caption(good).text
    mixed = [value for image in bad for value in (image, good)]
    results = list(model.caption_each(mixed, on_error="return", max_new_tokens=3, workers=workers, batch_size=5))
    assert [result.text for result in results[1::2]] == [model.caption(good, max_new_tokens=3).text] * len(bad)
    assert expected.startswith(results[1].text)
    for result, source in zip(results[::2], bad, strict=True):
        assert isinstance(result.error, ImageError), source
    assert "image: 600 x 12 pixels become 300 x 6; the model reads patches of 16 x 16" in str(results[22].error)
    assert "git lfs pull" in str(results[8].error)


def test_limits_of_a_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    model = gitfast.load(folder, limits=gitfast.Limits(max_pixels=900))
    assert model.processor.limits.max_pixels == 900
    small, large = random_image(0, (30, 30)), random_image(0, (31, 30))
    results = model.caption([small, large], on_error="return", max_new_tokens=2)
    assert results[0].error is None
    assert "31 x 30 pixels; at most 900 are allowed (max_pixels)" in str(results[1].error)
    fast = gitfast.load(folder, preprocess="fast")
    assert fast.caption(small, max_new_tokens=2).text == results[0].text
