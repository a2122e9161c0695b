"""The prefix cache: hits, eviction, and results that do not change."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import gitfast
from gitfast.engines.caching import CachingEngine
from gitfast.pipeline import batching

from support.tiny_checkpoint import random_image


@pytest.fixture
def model(checkpoint_folder: Path) -> gitfast.Model:
    return gitfast.load(checkpoint_folder, prefix_cache_bytes=1 << 30)


def caching(model: gitfast.Model) -> CachingEngine:
    assert isinstance(model.engine, CachingEngine)
    return model.engine


def encoded(model: gitfast.Model) -> int:
    return caching(model).engine.stats.encoded_images


def test_off_by_default(checkpoint_folder: Path) -> None:
    assert not isinstance(gitfast.load(checkpoint_folder).engine, CachingEngine)


def test_an_image_is_encoded_once_and_the_caption_stays(model: gitfast.Model, checkpoint_folder: Path) -> None:
    image = random_image(0)
    first = model.caption(image)
    assert model.caption(image) == first == gitfast.load(checkpoint_folder).caption(image)
    assert model.answer(image, ["what color?", "how many?"])
    assert encoded(model) == 1
    stats = caching(model).cache_stats
    assert (stats.hits, stats.misses, stats.evictions, stats.prefixes) == (2, 1, 0, 1)
    assert stats.nbytes == model.encode(image).nbytes


def test_pixels_are_the_key(model: gitfast.Model, tmp_path: Path) -> None:
    image = random_image(0)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    model.caption([image, tmp_path / "a.png", tmp_path / "b.bmp", random_image(1)])
    assert encoded(model) == 2
    assert caching(model).cache_stats.prefixes == 2


def test_files_seen_before_are_not_decoded_again(model: gitfast.Model, tmp_path: Path, monkeypatch) -> None:
    for name in ("a.png", "copy.png"):
        random_image(0).save(tmp_path / name)
    first = model.caption(tmp_path / "a.png")
    read = []
    original = batching.read_input
    monkeypatch.setattr(batching, "read_input", lambda *a, **b: read.append(a[1]) or original(*a, **b))
    again = [tmp_path / "a.png", str(tmp_path / "copy.png"), (tmp_path / "a.png").read_bytes()]
    assert model.caption(again) == [first] * 3
    assert model.caption(again[0], workers=2) == first
    assert (read, encoded(model)) == ([], 1)
    assert caching(model).cache_stats.hits == 4
    random_image(1).save(tmp_path / "a.png")
    assert model.caption(tmp_path / "a.png") != first, "another picture under the same name"
    caching(model).clear()
    assert model.caption(tmp_path / "copy.png") == first
    assert (len(read), encoded(model)) == (2, 3)


def test_bad_files_are_named_behind_a_cache(model: gitfast.Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    for name in ("bad.png", "missing.png"):
        for _ in range(2):
            with pytest.raises(gitfast.ImageError, match=f"^{tmp_path / name}: "):
                model.caption(tmp_path / name)


def test_order_of_a_batch_with_hits_and_misses(model: gitfast.Model, checkpoint_folder: Path) -> None:
    images = [random_image(i) for i in (3, 1, 4, 1, 5)]
    model.caption(images[2])
    expected = gitfast.load(checkpoint_folder).caption(images)
    assert model.caption(images) == expected
    assert encoded(model) == 4


def test_the_least_recently_used_goes_first(checkpoint_folder: Path) -> None:
    size = gitfast.load(checkpoint_folder).encode(random_image(0)).nbytes
    model = gitfast.load(checkpoint_folder, prefix_cache_bytes=2 * size)
    for i in (0, 1, 0, 2):
        model.encode(random_image(i))
    assert caching(model).cache_stats.nbytes == 2 * size
    model.encode(random_image(0))
    assert encoded(model) == 3
    model.encode(random_image(1))  # was evicted by 2
    assert encoded(model) == 4
    assert caching(model).cache_stats.evictions == 2


def test_a_prefix_larger_than_the_cache_is_not_kept(checkpoint_folder: Path) -> None:
    model = gitfast.load(checkpoint_folder, prefix_cache_bytes=10)
    model.caption([random_image(0), random_image(0)])
    model.caption(random_image(0))
    assert caching(model).cache_stats.prefixes == 0
    assert encoded(model) == 2


def test_clear_lets_go(model: gitfast.Model) -> None:
    model.encode(random_image(0))
    caching(model).clear()
    assert caching(model).cache_stats.nbytes == 0
    model.encode(random_image(0))
    assert encoded(model) == 2


def test_rows_at_once_are_those_of_the_engine_behind(model: gitfast.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.engine.rows_at_once is None
    monkeypatch.setattr(caching(model).engine, "rows_at_once", 5, raising=False)
    assert model.engine.rows_at_once == 5


def test_threads(model: gitfast.Model) -> None:
    images = [random_image(i) for i in range(4)]
    expected = [str(model.caption(image)) for image in images]
    wrong = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(4, size=20):
            if str(model.caption(images[i])) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert encoded(model) == 4


def test_the_size_must_be_positive(checkpoint_folder: Path) -> None:
    with pytest.raises(ValueError, match="prefix_cache_bytes: expected a positive number of bytes, got 0"):
        gitfast.load(checkpoint_folder, prefix_cache_bytes=0)
