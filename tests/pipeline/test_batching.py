"""Batches through an engine that only records what it is given."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gitfast
from gitfast.engines.caching import CachingEngine
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.processor import Processor
from gitfast.inputs.tokenizer import Tokenizer
from gitfast.pipeline import batching as pipeline
from gitfast.pipeline.batching import Batching
from gitfast.types import GenerationOptions

from support.fake_engine import FakeEngine, FakePrefix
from support.tiny_checkpoint import random_image


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def processor(checkpoint_folder) -> Processor:
    """Keeps the aspect ratio, so images end in different shapes."""
    image_processor = ImageProcessor(size=16, crop_size=None)
    return Processor(image_processor=image_processor, tokenizer=Tokenizer.from_folder(checkpoint_folder))


def generate(engine, processor, images, questions=1, **batching):
    prompts = [[[2]] * questions] * len(images)
    options = GenerationOptions()
    rows = pipeline.generate(engine, processor, images, prompts, options, Batching(**batching), show_prompt=False)
    return [[result.score for result in results] for results in rows]


def test_images_of_one_shape_are_encoded_together_and_keep_their_places(engine, processor):
    images = [random_image(i, (32, 16) if i % 3 else (16, 16)) for i in range(7)]
    scores = generate(engine, processor, images)
    assert sorted(engine.encoded) == [(3, 3, 16, 16), (4, 3, 16, 32)]
    expected = [processor.images(image).mean() for image in images]
    np.testing.assert_allclose([s for (s,) in scores], expected, rtol=1e-5)


def test_engines_that_normalise_are_given_bytes(engine, processor, checkpoint_folder):
    images = [random_image(0, (32, 16)), random_image(1, (16, 16))]
    engine.normalization = processor.image_processor.normalization
    scores = generate(engine, processor, images)
    assert sorted(engine.encoded) == [(1, 16, 16, 3), (1, 16, 32, 3)]
    np.testing.assert_allclose([s for (s,) in scores], [processor.images(x, normalize=False).mean() for x in images])
    # Behind a cache too; but never bytes that the engine would normalise otherwise.
    generate(CachingEngine(engine, 100), processor, images[:1])
    assert engine.encoded[-1] == (1, 16, 32, 3)
    engine.normalization = ImageProcessor(image_mean=(0.1, 0.2, 0.3)).normalization
    generate(engine, processor, images[:1])
    assert engine.encoded[-1] == (1, 3, 16, 32)


def test_memory_does_not_grow_with_the_inputs(engine, processor):
    gc.disable()  # references alone must let prefixes go
    try:
        generate(engine, processor, [random_image(i) for i in range(23)], batch_size=4)
    finally:
        gc.enable()
    assert max(count for count, *_ in engine.encoded) == 4
    assert engine.most_prefixes <= 8  # one batch may still be held while the next is encoded


def test_rows_are_bounded_too(engine, processor):
    scores = generate(engine, processor, [random_image(i) for i in range(3)], questions=50)
    assert [len(row) for row in scores] == [50, 50, 50]
    assert max(engine.rows) <= 64
    assert sum(engine.rows) == 150


def test_scores_are_those_of_the_continuation(engine, processor):
    scores = pipeline.score(engine, FakePrefix(np.zeros(1)), [2, 7, 8], [[9, 3], [3]] * 100)
    assert max(engine.rows) <= 64
    assert len(scores) == 200
    np.testing.assert_array_equal(scores[0], [9, 3])
    np.testing.assert_array_equal(scores[199], [3])


def test_timings_are_those_of_the_batch(checkpoint_folder, image_files):
    model = gitfast.load(checkpoint_folder)
    single = model.caption(image_files[0])
    assert min(single.timings.read, single.timings.encode, single.timings.generate) > 0
    first, second, third = model.caption(image_files[:3], batch_size=2)
    assert first.timings == second.timings != third.timings
    assert first == single, "timings do not make results differ"


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(engine, processor, workers):
    shared = random_image(0)
    images = [shared, b"not an image", *map(random_image, range(20)), shared]
    for options in ({"batch_size": 4}, {"batch_size": 50}):
        expected = generate(engine, processor, images, on_error="return", **options)
        batches, engine.encoded = engine.encoded, []
        assert generate(engine, processor, images, on_error="return", workers=workers, **options) == expected
        assert engine.encoded == batches
        engine.encoded = []
    results = pipeline.generate(
        engine, processor, images, [[[2]]] * 23, GenerationOptions(), Batching(workers=workers), show_prompt=False
    )
    next(results)
    with pytest.raises(gitfast.ImageError, match=r"images\[1\]"):
        next(results)


@pytest.mark.parametrize("workers", [0, 257, "2", 1.5])
def test_wrong_numbers_of_workers(workers):
    with pytest.raises(ValueError, match="workers"):
        Batching(workers=workers)
