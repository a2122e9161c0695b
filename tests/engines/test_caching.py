"""The prefix cache: hits, eviction, and results that do not change."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gitfast
from gitfast.engines.caching import CachingEngine, file_key
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


def test_one_encoding_for_ten_threads(model: gitfast.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for the first, and are counted as hits."""
    engine, encode, inside = caching(model), caching(model).engine.encode, threading.Event()

    def slow(pixels, **options):
        inside.set()
        while engine.cache_stats.hits < 9:  # until all others wait
            time.sleep(0.001)
        return encode(pixels, **options)

    monkeypatch.setattr(engine.engine, "encode", slow)
    with ThreadPoolExecutor(10) as callers:
        prefixes = list(callers.map(model.encode, [random_image(0)] * 10))
    assert len({id(prefix) for prefix in prefixes}) == 1
    assert (engine.cache_stats.hits, engine.cache_stats.misses) == (9, 1)
    assert encoded(model) == 1


def test_who_waits_goes_on_when_the_first_fails(model: gitfast.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, encode, failed = caching(model), caching(model).engine.encode, []

    def fail_once(pixels, **options):
        if failed:
            return encode(pixels, **options)
        failed.append(True)
        while engine.cache_stats.hits < 1:
            time.sleep(0.001)
        raise gitfast.CancelledError("mine")

    monkeypatch.setattr(engine.engine, "encode", fail_once)
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(model.encode, random_image(0)) for _ in range(2)]
        errors = [call.exception() for call in calls]
    assert sorted(type(error).__name__ for error in errors) == ["CancelledError", "NoneType"]
    assert encoded(model) == 1


def test_who_waits_can_be_cancelled(model: gitfast.Model) -> None:
    engine, go_on = caching(model), threading.Event()
    with ThreadPoolExecutor(1) as caller:
        (prefix,) = [model.encode(random_image(1))]
        first = caller.submit(engine.encode_keyed, [b"key"], lambda _: [prefix] * go_on.wait(60))
        while engine.cache_stats.misses < 2:
            time.sleep(0.001)
        with pytest.raises(gitfast.DeadlineError):
            engine.encode_keyed([b"key"], lambda _: [prefix], cancel=gitfast.CancelToken(timeout=0.01))
        go_on.set()
        assert first.result() == [prefix]


def test_keys_of_the_caller(model: gitfast.Model) -> None:
    """A hit by the file's bytes needs no pixels."""
    engine = caching(model)
    asked: list[list[int]] = []

    def encode(missing):
        asked.append(missing)
        return [model.encode(random_image(i)) for i in missing]

    keys = [file_key(data, ("crop", 224)) for data in (b"a", b"b", b"a")]
    first = engine.encode_keyed(keys, encode)
    assert first[0] is first[2]
    assert engine.encode_keyed(keys, encode) == first
    assert asked == [[0, 1]]
    assert len({*keys, file_key(b"a", ("crop", 480)), file_key(b"c", ("crop", 224))}) == 4


def test_a_child_forked_while_the_lock_is_held_goes_on(model: gitfast.Model) -> None:
    engine = caching(model)
    model.encode(random_image(0))
    with engine._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if engine.cache_stats.prefixes == 1 and model.encode(random_image(0)) else 1)
    assert os.waitpid(child, 0)[1] == 0
