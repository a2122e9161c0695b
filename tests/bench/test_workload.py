"""The models that captions are timed on: each has all its random weights, and none ends a text."""

from __future__ import annotations

import numpy as np
import pytest

from gitfast.bench.caption import equal_tokens
from gitfast.bench.captioners import Way, transformers_model
from gitfast.bench.workload import Pixels, open_workload, random_pixels
from gitfast.checkpoints.checkpoint import expected_tensors
from gitfast.checkpoints.published import SHAPES

from support.tiny_bench import TINY, shrink


def test_random_weights_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    first, again = open_workload("base"), open_workload("git-base")
    assert first.name == again.name == "git-base"
    assert {name: x.shape for name, x in first.weights.items()} == expected_tensors(TINY)
    assert all(np.array_equal(x, again.weights[name]) for name, x in first.weights.items())
    assert first.weights["output.bias"].argmin() == TINY.eos_token_id
    matrices = [x for x in first.weights.values() if x.ndim == 2]
    assert all(0.015 < x.std() < 0.025 for x in matrices)


def test_a_real_model_keeps_its_weights() -> None:
    workload = open_workload("git-tiny")
    assert not workload.random
    assert workload.weights["output.bias"].argmin() == workload.config.eos_token_id
    assert workload.weights["git.embeddings.word_embeddings.weight"].std() > 0


def test_transformers_gets_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    for name in ("git-base", "git-base-vatex"):
        workload = open_workload(name)
        model = transformers_model(workload)
        assert not any(x.is_meta for x in [*model.parameters(), *model.buffers()])
        state = model.state_dict()
        assert all(np.array_equal(state[key].numpy(), x) for key, x in workload.weights.items())


def test_pixels() -> None:
    pixels = Pixels(np.array([0, 255, 128], np.uint8).reshape(1, 1, 1, 3))
    assert pixels.normalised.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(pixels.normalised[0, :2, 0, 0], [-1.7923, 2.0749], atol=1e-3)
    clip = random_pixels(SHAPES["git-base-vatex"], 2)
    assert (len(clip), clip.as_bytes.shape) == (2, (2, 6, 224, 224, 3))
    assert clip[:1].normalised.shape == (1, 6, 3, 224, 224)


def test_names_of_ways() -> None:
    way = Way.parse("gitfast:bfloat16,decode=persistent,prefix_dtype=int8")
    assert way.options == (("decode", "persistent"), ("prefix_dtype", "int8"))
    assert way.name == "gitfast:bfloat16,decode=persistent,prefix_dtype=int8"
    assert Way.parse("transformers") == Way("transformers", "float32")


def test_equal_tokens_end_at_the_first_difference() -> None:
    assert equal_tokens([[1, 2, 3], [1, 9, 3]], [[1, 2, 3], [1, 2, 3]]) == 4
