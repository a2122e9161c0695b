"""Bad arguments: every engine refuses them, in the same words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gitfast.engines.base import Engine
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.engines.reference import ReferenceEngine
from gitfast.types import GenerationOptions

from support.tiny_model import GREEDY, make_model, random_pixels, weights_of

WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}  # as the CUDA kernels take them


def make(name: str, **overrides: Any) -> Engine:
    model = make_model(**WIDTHS, **overrides)
    if name == "reference":
        return ReferenceEngine(model)
    if name == "cpu":
        return CpuEngine.from_weights(model.config, weights_of(model), num_threads=1)
    return CudaEngine.from_weights(model.config, model.state_dict(), device="cpu")


@pytest.fixture(params=["cpu", "reference", "cuda"])
def name(request: pytest.FixtureRequest) -> str:
    """Every engine; that of CUDA over emulated kernels."""
    if request.param == "cuda":
        request.getfixturevalue("emulated_ops")
    return request.param


@pytest.fixture
def engine(name: str) -> Engine:
    return make(name)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (random_pixels(1, 3, 32, 32).astype(np.float64), "float64"),
        (random_pixels(1, 3, 32, 32).astype(np.float16), "expected dtype float32, got float16"),
        (random_pixels(3, 32, 32), r"expected \(B, 3, H, W\) or \(B, T, 3, H, W\), got 3 dimensions"),
        (random_pixels(1, 1, 32, 32), r"expected shape \(B, 3, H, W\), got \(1, 1, 32, 32\)"),
        (random_pixels(1, 3, 32, 31), "expected images of 32x32, got 32x31"),
        (random_pixels(0, 3, 32, 32), "at least one image"),
        (random_pixels(1, 2, 3, 32, 32), "not a video model"),
        ([[0.0]], "expected an array, got list"),
        (None, "expected an array, got NoneType"),
    ],
)
def test_wrong_pixels_are_refused(engine, pixels, message):
    with pytest.raises(ValueError, match=f"pixel_values: .*{message}"):
        engine.encode(pixels)


def test_too_many_frames_are_refused(name):
    engine = make(name, num_image_with_embedding=3)
    with pytest.raises(ValueError, match="pixel_values: expected clips of at most 3 frames, got 4"):
        engine.encode(random_pixels(1, 4, 3, 32, 32))


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([[]], ValueError, r"\[0\]: expected at least one token id"),
        ([[2, 70]], ValueError, r"\[0\]: token id 70 is outside the vocabulary of 70"),
        ([[2, -1]], ValueError, r"\[0\]: token id -1 is outside the vocabulary of 70"),
        ([[2**40]], ValueError, r"\[0\]: token id 1099511627776 is outside the vocabulary"),
        ([["cat"]], TypeError, r"\[0\]: expected an integer, got 'cat'"),
        ([[2.0]], TypeError, r"\[0\]: expected an integer, got 2.0"),
        ([7], TypeError, r"\[0\]: expected token ids, got 7"),
        ([[True]], TypeError, r"\[0\]: expected an integer, got True"),
        ([b"ab"], TypeError, r"\[0\]: expected token ids, got b'ab'"),
        ([bytearray(b"ab")], TypeError, r"\[0\]: expected token ids, got bytearray"),
        ("ab", TypeError, "expected sequences of token ids, got 'ab'"),
        (np.array([[1.0]]), TypeError, r"\[0\]: expected an integer, got "),
        (np.array(2), TypeError, "expected sequences of token ids, got array"),
        (None, TypeError, "expected sequences of token ids, got None"),
        ([[2]] * 2, ValueError, "prefixes: expected one for each of the 2"),
        ([[2] * 41], ValueError, r"\[0\]: 41 tokens .*exceed the model's 40 text positions"),
    ],
)
def test_wrong_token_ids_are_refused(engine, prompts, error, message):
    for call in (lambda: engine.generate([None], prompts, GREEDY), lambda: engine.score([None], prompts)):
        with pytest.raises(error, match=message):
            call()


def test_wrong_options_are_refused(engine):
    for options, message in (
        (GenerationOptions(max_new_tokens=0), "max_new_tokens: expected"),
        (GenerationOptions(num_beams=2, num_return_sequences=3), "num_return_sequences: expected"),
        (GenerationOptions(max_new_tokens=41), r"prompts\[0\]: 1 tokens and 41 new ones exceed the model's 40"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate([None], [[2]], options)


def test_the_last_token_needs_no_position(engine):
    """Every token that is read needs a position; the last that is generated is not read."""
    (found,) = engine.generate([None], [[2]], GenerationOptions(max_new_tokens=40))[0]
    assert 1 <= len(found.token_ids) <= 40


def test_foreign_prefixes_are_refused(engine):
    with pytest.raises(TypeError, match=r"prefixes\[1\]: expected a prefix of this .*, got SimpleNamespace"):
        engine.generate([None, SimpleNamespace(num_tokens=3)], [[2], [2]], GREEDY)
    with pytest.raises(TypeError, match=r"prefixes\[0\]: expected a prefix of this .*, got SimpleNamespace"):
        engine.score([SimpleNamespace(num_tokens=3)], [[2]])


def test_a_callback_that_is_no_function_is_refused(engine):
    with pytest.raises(TypeError, match="on_token: expected a function or None, got 7"):
        engine.generate([None], [[2]], GREEDY, 7)
