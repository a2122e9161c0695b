"""The attention that engines show: that of the specification, and a share of a softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gitfast
from gitfast.engines.caching import CachingEngine
from gitfast.engines.reference import ReferenceEngine

from support.tiny_checkpoint import random_image
from support.tiny_model import make_engine, make_model, random_pixels

SEQUENCE = [2, 9, 9, 20, 30, 4, 5]


@pytest.fixture(scope="module")
def torch_model():
    return make_model()


@pytest.fixture(scope="module")
def reference(torch_model):
    return ReferenceEngine(torch_model)


def test_reference_is_the_softmax_of_the_model(torch_model, reference):
    """Recorded inside the model itself, as it decodes."""
    from gitfast import torch_model as specification

    recorded: list[torch.Tensor] = []
    plain = specification.attention_weights

    def record(q, k, allowed=None):
        weights = plain(q, k, allowed)
        recorded.append(weights)
        return weights

    (prefix,) = reference.encode(random_pixels(1, 3, 32, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specification, "attention_weights", record)
        reference.score([prefix], [SEQUENCE])
    truth = torch.stack(recorded)[:, 0].mean((0, 1))[:, : prefix.num_tokens].numpy()
    np.testing.assert_allclose(reference.attend(prefix, SEQUENCE), truth, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_cpu_equals_reference(torch_model, reference, threads):
    pixels = random_pixels(1, 3, 32, 32)
    engine = make_engine(torch_model, num_threads=threads)
    ours = engine.attend(engine.encode(pixels)[0], SEQUENCE)
    truth = reference.attend(reference.encode(pixels)[0], SEQUENCE)
    assert (ours.shape, ours.dtype) == ((len(SEQUENCE), 17), np.float32)
    assert np.ptp(truth) > 0.01, "a flat map would be no test"
    np.testing.assert_allclose(ours, truth, atol=2e-5)
    assert (ours.sum(1) < 1).all(), "the rest looks at the text"


def test_clips(video_checkpoint_folder):
    clip = [random_image(i) for i in range(3)]
    ours, truth = (gitfast.load(video_checkpoint_folder, engine=name) for name in ("cpu", "reference"))
    text = "the red circle"
    found = ours.attend(ours.encode(clip), text)
    assert found.shape == (3, 3 * 17)
    np.testing.assert_allclose(found, truth.attend(truth.encode(clip), text), atol=2e-5)


def test_a_lower_precision_stays_close(checkpoint_folder):
    image = random_image(0)
    exact, rounded = (gitfast.load(checkpoint_folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    text = "a red circle on the left"
    np.testing.assert_allclose(rounded.attend(image, text), exact.attend(image, text), atol=0.02)


@pytest.fixture(scope="module")
def model(checkpoint_folder):
    return gitfast.load(checkpoint_folder, prefix_cache_bytes=1_000_000)


class TestModel:
    def test_rows_are_the_positions_that_predict(self, model):
        image, ids = random_image(0), model.processor.tokenizer.encode
        prefix = model.encode(image)
        whole = model.engine.attend(prefix, [2, *ids("what color ?"), *ids("red circles")])
        found = model.attend(image, "red circles", prompt="what color ?")
        np.testing.assert_array_equal(found, whole[3:6])
        assert len(found) == len(ids("red circles")) == 3

    def test_an_empty_text(self, model):
        with pytest.raises(ValueError, match="text: expected at least one token"):
            model.attend(random_image(0), " ")

    def test_a_text_that_is_too_long(self, model):
        with pytest.raises(ValueError, match="40 text positions"):
            model.attend(random_image(0), "red " * 60)

    def test_an_engine_without(self, model, monkeypatch):
        monkeypatch.setattr(CachingEngine, "attends", False)
        with pytest.raises(gitfast.EngineError, match="keeps no attention"):
            model.attend(random_image(0), "red")


def test_other_engines_prefixes_are_refused(torch_model):
    engine, other = make_engine(torch_model), make_engine(torch_model)
    (prefix,) = other.encode(random_pixels(1, 3, 32, 32))
    with pytest.raises(ValueError, match="another engine"):
        engine.attend(prefix, SEQUENCE)
    with pytest.raises(ValueError, match="prefix"):
        engine.attend(None, SEQUENCE)
