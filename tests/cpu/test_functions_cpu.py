"""The CPU functions that have a CUDA kernel of their own, against gitfast.ops.reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast import ops
from gitfast.ops import reference

from support.accuracy import poisoned


def doubles(*arrays: np.ndarray | None) -> list[torch.Tensor | None]:
    return [a if a is None else torch.from_numpy(np.array(a)).double() for a in arrays]


@settings(deadline=None)
@given(rows=st.integers(0, 9), d=st.integers(1, 90), bias=st.booleans(), scale=st.sampled_from([0.01, 1.0, 9.0]))
@pytest.mark.parametrize("function", ["bias_gelu", "bias_quick_gelu"])
@pytest.mark.parametrize("isa", ops.available_isas())
def test_activations(isa: str, function: str, rows: int, d: int, bias: bool, scale: float) -> None:
    rng = np.random.default_rng(rows * 100 + d)
    x = rng.standard_normal((rows, d + 3), np.float32)[:, 1 : d + 1] * np.float32(scale)
    b = rng.standard_normal(d, np.float32) if bias else None
    y = getattr(ops, function)(x, b, out=poisoned(rows, d), isa=isa)
    truth = getattr(reference, function)(*doubles(x, b)).numpy()
    np.testing.assert_allclose(y, truth, rtol=2e-6, atol=2e-6)


def test_activations_in_place_and_threaded(isa: str) -> None:
    x = np.random.default_rng(0).standard_normal((30, 100), np.float32)
    expected = ops.bias_gelu(x, isa=isa)
    np.testing.assert_array_equal(ops.bias_gelu(x, isa=isa, pool=ops.ThreadPool(3)), expected)
    assert ops.bias_gelu(x, out=x, isa=isa) is x
    np.testing.assert_array_equal(x, expected)


def test_add_layer_norm(isa: str) -> None:
    rng = np.random.default_rng(0)
    x, residual = rng.standard_normal((2, 5, 72), np.float32)
    gamma, beta, bias = rng.standard_normal((3, 72), np.float32)
    for b, r in ((None, None), (bias, residual)):
        y = ops.add_layer_norm(x, gamma, beta, bias=b, residual=r, isa=isa)
        x64, gamma64, beta64, b64, r64 = doubles(x, gamma, beta, b, r)
        truth = reference.add_layer_norm(x64, gamma64, beta64, bias=b64, residual=r64)
        np.testing.assert_allclose(y, truth, atol=1e-5)


def test_embed_layer_norm(isa: str) -> None:
    rng = np.random.default_rng(0)
    words, positions = rng.standard_normal((11, 40), np.float32), rng.standard_normal((5, 40), np.float32)
    gamma, beta = rng.standard_normal((2, 40), np.float32)
    ids, places = np.array([0, 10, 3], np.int32), np.array([0, 4, 1], np.int32)
    y = ops.embed_layer_norm(ids, places, words, positions, gamma, beta, isa=isa)
    tables = doubles(words, positions, gamma, beta)
    truth = reference.embed_layer_norm(torch.from_numpy(ids), torch.from_numpy(places), *tables)
    np.testing.assert_allclose(y, truth, atol=1e-5)
    with pytest.raises(ValueError, match="ids: expected 0 to 10, got 0 to 11"):
        ops.embed_layer_norm([0, 11], [0, 0], words, positions, gamma, beta)
    with pytest.raises(ValueError, match="position_ids: expected 0 to 4, got -1 to 0"):
        ops.embed_layer_norm([0, 1], [0, -1], words, positions, gamma, beta)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_head_select(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((6, 64), np.float32), rng.standard_normal(300, np.float32)
    weight = ops.PackedWeight(rng.standard_normal((300, 64), np.float32) / 8, bias, dtype=dtype)
    quantiles = rng.random(6)
    got = ops.head_select(x, weight, choices=4, temperature=0.7, quantiles=quantiles, isa=isa)
    logits = torch.from_numpy(ops.linear(x, weight, isa=isa)).double()
    identity = torch.eye(300, dtype=torch.float64)
    tokens, log_probs, drawn, truth = reference.head_select(
        logits, identity, choices=4, temperature=0.7, quantiles=torch.from_numpy(quantiles)
    )
    np.testing.assert_array_equal(got.tokens, tokens)
    np.testing.assert_array_equal(got.drawn, drawn)
    np.testing.assert_allclose(got.log_probs, log_probs, atol=1e-5)
    np.testing.assert_allclose(got.logits, truth, atol=1e-5)


def test_of_equal_ones_the_first_token_wins() -> None:
    bias = np.zeros(9, np.float32)
    bias[[3, 7]] = 1
    got = ops.head_select(np.zeros((1, 4), np.float32), np.zeros((9, 4), np.float32), bias, choices=4)
    assert got.tokens.tolist() == [[3, 7, 0, 1]]
    assert got.drawn is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"choices": 10}, "choices: expected 1 to 9, got 10"),
        ({"bias": np.full(9, np.nan, np.float32)}, "logits: NaN or infinite"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.head_select(np.zeros((1, 4), np.float32), np.zeros((9, 4), np.float32), **change)
