"""The CPU LayerNorm kernel: accuracy, independent rows, strides, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast import ops
from gitfast.ops import reference

from support.accuracy import assert_as_good_as_numpy, poisoned


@settings(deadline=None)
@given(
    rows=st.integers(0, 20),
    d=st.one_of(st.integers(1, 100), st.sampled_from([768, 1000, 1024])),
    eps=st.sampled_from([1e-5, 1e-12]),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("isa", ops.available_isas())
def test_layer_norm_is_as_good_as_numpy(isa, rows, d, eps, offset, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, d), np.float32) + np.float32(offset)
    gamma, beta = rng.standard_normal((2, d), np.float32)
    y = ops.layer_norm(x, gamma, beta, eps=eps, out=poisoned(rows, d), isa=isa)
    truth = reference.layer_norm(*(a.astype(np.float64) for a in (x, gamma, beta)), eps=eps)
    spread = x.std(-1, keepdims=True).min(initial=1) if d > 1 else 1
    scale = (np.abs(x).max(initial=1) / max(spread, eps**0.5, 1e-3) + 1) * np.abs(gamma).max() + 1
    assert_as_good_as_numpy(y, reference.layer_norm(x, gamma, beta, eps=eps), truth, scale)


def test_constant_rows_give_beta(isa):
    beta = np.arange(50, dtype=np.float32)
    y = ops.layer_norm(np.full((3, 50), 7, np.float32), np.ones(50, np.float32), beta, eps=1e-12, isa=isa)
    np.testing.assert_array_equal(y, np.tile(beta, (3, 1)))


def test_rows_are_independent_strided_threaded_and_in_place(isa):
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((30, 300), np.float32)
    gamma, beta = rng.standard_normal((2, 100), np.float32)
    x = wide[:, 70:170]
    y = ops.layer_norm(x, gamma, beta, isa=isa)
    for r in (0, 7, 29):
        np.testing.assert_array_equal(ops.layer_norm(x[r : r + 1], gamma, beta, isa=isa)[0], y[r])
    np.testing.assert_array_equal(ops.layer_norm(x, gamma, beta, isa=isa, pool=ops.ThreadPool(4)), y)
    in_place = np.ascontiguousarray(x)
    ops.layer_norm(in_place, gamma, beta, out=in_place, isa=isa)
    np.testing.assert_array_equal(in_place, y)


@pytest.mark.skipif("avx512" not in ops.available_isas(), reason="needs AVX-512")
@settings(deadline=None)
@given(rows=st.integers(1, 5), d=st.integers(1, 200))
def test_avx2_and_avx512_agree_to_the_bit(rows, d):
    rng = np.random.default_rng(d)
    x, (gamma, beta) = rng.standard_normal((rows, d), np.float32), rng.standard_normal((2, d), np.float32)
    wide, narrow = (ops.layer_norm(x, gamma, beta, isa=isa) for isa in ("avx512", "avx2"))
    np.testing.assert_array_equal(wide, narrow)


def test_wrong_arguments_get_one_clear_error():
    x, gamma = np.zeros((2, 8), np.float32), np.zeros(8, np.float32)
    with pytest.raises(ValueError, match=r"gamma: expected shape \(D=8,\), got \(7,\)"):
        ops.layer_norm(x, gamma[:7], gamma)
    with pytest.raises(ValueError, match=r"beta: expected a C-contiguous array"):
        ops.layer_norm(x, gamma, np.zeros(16, np.float32)[::2])
    with pytest.raises(ValueError, match=r"x: expected D >= 1"):
        ops.layer_norm(x[:, :0], gamma[:0], gamma[:0])
