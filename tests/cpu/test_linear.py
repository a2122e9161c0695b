"""The CPU linear kernel: accuracy, exact sums, independent rows, activations, and errors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast import ops
from gitfast.ops import reference

from support.accuracy import assert_right_up_to_rounding, poisoned

# Around the tile heights (3, 6, 12), the panel width (32), and the block of a sum (256).
ROWS = st.one_of(st.integers(0, 30), st.sampled_from([96, 197, 210]))
COLUMNS = st.one_of(st.integers(1, 140), st.sampled_from([256, 300]))
TERMS = st.one_of(st.integers(1, 80), st.sampled_from([255, 256, 257, 512, 700, 1024]))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@settings(deadline=None)
@given(
    m=ROWS,
    n=COLUMNS,
    k=TERMS,
    activation=st.sampled_from(["none", "quick_gelu", "gelu"]),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("isa", ops.available_isas())
def test_linear_is_right_up_to_rounding(isa, m, n, k, activation, with_bias, with_residual, seed):
    x, weight = normal(seed, m, k), normal(seed + 1, n, k)
    bias = normal(seed + 2, n) if with_bias else None
    residual = normal(seed + 3, m, n) if with_residual else None
    y = ops.linear(x, weight, bias, activation=activation, residual=residual, out=poisoned(m, n), isa=isa)
    wide = [None if a is None else a.astype(np.float64) for a in (x, weight, bias, residual)]
    truth = reference.linear(*wide[:3], activation=activation, residual=wide[3])
    assert_right_up_to_rounding(y, truth, x, weight)


@settings(deadline=None)
@given(m=ROWS, n=COLUMNS, k=st.sampled_from([1, 17, 256, 768, 3072]), seed=st.integers(0, 2**16))
def test_small_whole_numbers_are_exact(m, n, k, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.integers(-8, 9, (m, k)), rng.integers(-8, 9, (n, k))
    bias, residual = rng.integers(-99, 99, n), rng.integers(-99, 99, (m, n))
    arguments = [a.astype(np.float32) for a in (x, weight, bias)]
    expected = x @ weight.T + bias + residual  # below 2**24: every partial sum is a float32
    for isa in ops.available_isas():
        y = ops.linear(*arguments, residual=residual.astype(np.float32), out=poisoned(m, n), isa=isa)
        np.testing.assert_array_equal(y, expected)


@settings(deadline=None)
@given(m=st.integers(1, 220), n=COLUMNS, k=TERMS, activation=st.sampled_from(["none", "quick_gelu", "gelu"]))
@pytest.mark.parametrize("isa", ops.available_isas())
def test_a_row_does_not_depend_on_its_batch(isa, m, n, k, activation):
    x, weight = normal(m, m, k), ops.PackedWeight(normal(n, n, k), normal(k, n))
    together = ops.linear(x, weight, activation=activation, isa=isa)
    for first, last in [(0, 1), (m // 2, m // 2 + 1), (m - 1, m), (0, m - 1), (m // 3, m)]:
        part = ops.linear(x[first:last], weight, activation=activation, isa=isa)
        np.testing.assert_array_equal(part, together[first:last])


def test_threads_do_not_change_a_bit(isa):
    x, weight = normal(0, 13, 300), ops.PackedWeight(normal(1, 1000, 300), normal(2, 1000))
    alone = ops.linear(x, weight, isa=isa)
    for threads in (1, 2, 3, 7, 40):
        y = ops.linear(x, weight, out=poisoned(13, 1000), isa=isa, pool=ops.ThreadPool(threads))
        np.testing.assert_array_equal(y, alone)


@pytest.mark.skipif("avx512" not in ops.available_isas(), reason="needs AVX-512")
@settings(deadline=None)
@given(m=ROWS, n=COLUMNS, k=TERMS, activation=st.sampled_from(["none", "quick_gelu", "gelu"]))
def test_avx2_and_avx512_agree_to_the_bit(m, n, k, activation):
    x, weight, bias = normal(m, m, k), normal(n, n, k), normal(k, n)
    wide, narrow = (ops.linear(x, weight, bias, activation=activation, isa=isa) for isa in ("avx512", "avx2"))
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_activations_over_the_whole_range(isa, activation):
    x = np.concatenate([np.linspace(-100, 100, 200001), np.logspace(-30, 30, 1001), -np.logspace(-30, 30, 1001)])
    x = x.astype(np.float32)[:, None]
    y = ops.linear(x, np.ones((1, 1), np.float32), activation=activation, isa=isa)
    truth = reference.ACTIVATIONS[activation](x.astype(np.float64))
    assert np.isfinite(y).all()
    # Four units in the last place of x where the factor is near 1; the small tail is precise too.
    np.testing.assert_allclose(y, truth, rtol=4e-7, atol=1.2e-7)
    tail = (x < -1) & (x > -5)
    np.testing.assert_allclose(y[tail], truth[tail], rtol=2e-6)


@pytest.mark.parametrize("activation", ["none", "quick_gelu", "gelu"])
def test_nan_and_infinity_pass_through(isa, activation):
    x = np.array([[np.nan], [np.inf], [1.0]], np.float32)
    y = ops.linear(x, np.ones((1, 1), np.float32), activation=activation, isa=isa)[:, 0]
    assert np.isnan(y[0])
    assert y[1] == np.inf
    assert np.isfinite(y[2])


def test_residual_in_place(isa):
    x, weight, residual = normal(0, 20, 300), normal(1, 70, 300), normal(2, 20, 70)
    expected = ops.linear(x, weight, residual=residual, isa=isa)
    y = residual.copy()
    assert ops.linear(x, weight, residual=y, out=y, isa=isa) is y
    np.testing.assert_array_equal(y, expected)


def test_strided_rows_and_half_precision_weights(isa):
    wide, weight = normal(0, 20, 400), normal(1, 50, 100).astype(np.float16)
    np.testing.assert_array_equal(
        ops.linear(wide[::2, 50:150], weight, isa=isa),
        ops.linear(np.ascontiguousarray(wide[::2, 50:150]), weight.astype(np.float32), isa=isa),
    )


def test_every_half_precision_number_is_read_exactly():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    y = ops.linear(np.ones((1, 1), np.float32), halves[:, None])
    np.testing.assert_array_equal(y[0], halves.astype(np.float32))


def test_torch_tensors_are_arguments_too():
    torch = pytest.importorskip("torch")
    x, weight = torch.randn(5, 40), torch.randn(7, 40)
    np.testing.assert_array_equal(ops.linear(x, weight), ops.linear(x.numpy(), weight.numpy()))
    with pytest.raises(ValueError, match="x: expected dtype float32, got bfloat16"):
        ops.linear(x.bfloat16(), weight)


class Lender:
    """Speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self):
        return self.array.__dlpack__()


def test_lent_memory_is_given_back_once():
    x, weight = normal(0, 3, 8), normal(1, 4, 8)
    before = sys.getrefcount(x)
    for _ in range(100):
        ops.linear(Lender(x), weight)
        with pytest.raises(ValueError, match="x: expected shape"):
            ops.linear(Lender(x), weight[:, :5].copy())
    assert sys.getrefcount(x) == before
    double = x.astype(np.float64)
    before = sys.getrefcount(double)
    for _ in range(100):
        with pytest.raises(ValueError, match=r"x: unsupported dtype \(DLPack code 2, 64 bits\)"):
            ops.linear(Lender(double), weight)
    assert sys.getrefcount(double) == before


def test_wrong_arguments_get_one_clear_error():
    x, weight = np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float32)
    cases = [
        ({"x": x.astype(np.float64)}, r"x: unsupported dtype float64"),
        ({"x": x.astype(">f4")}, r"x: unsupported dtype >f4"),
        ({"x": x.astype(np.float16)}, r"x: expected dtype float32, got float16"),
        ({"x": x[:, :7]}, r"x: expected shape \(M, K=8\), got \(2, 7\)"),
        ({"x": x[0]}, r"x: expected shape \(M, K=8\), got \(8,\)"),
        ({"x": np.zeros((2, 16), np.float32)[:, ::2]}, r"x: expected rows of consecutive elements"),
        ({"x": x[::-1]}, r"x: expected rows of consecutive elements"),
        ({"x": np.frombuffer(bytes(65), np.uint8)[1:].view(np.float32).reshape(2, 8)}, r"x: the data is not aligned"),
        ({"x": [[0.0]]}, r"x: expected an array, got list"),
        ({"weight": weight[:, ::2]}, r"weight: expected a C-contiguous array"),
        ({"weight": weight[0]}, r"weight: expected shape \(N, K\), got \(8,\)"),
        ({"weight": np.zeros((3, 0), np.float32)}, r"weight: expected K >= 1"),
        ({"bias": np.zeros(4, np.float32)}, r"bias: expected shape \(N=3,\), got \(4,\)"),
        ({"residual": np.zeros((2, 4), np.float32)}, r"residual: expected shape \(M=2, N=3\), got \(2, 4\)"),
        ({"out": np.zeros((3, 2), np.float32)}, r"out: expected shape \(2, 3\), got \(3, 2\)"),
        ({"activation": "relu"}, r"activation: expected 'none', 'quick_gelu' or 'gelu', got 'relu'"),
        ({"isa": "mmx"}, r"isa: this machine runs .*scalar.*; got 'mmx'"),
    ]
    for change, message in cases:
        arguments = {"x": x, "weight": weight, "bias": None} | change
        with pytest.raises(ValueError, match=message):
            ops.linear(**arguments)
    with pytest.raises(ValueError, match="bias: a PackedWeight holds its own bias"):
        ops.linear(x, ops.PackedWeight(weight), np.zeros(3, np.float32))
    read_only = np.zeros((2, 3), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writeable array"):
        ops.linear(x, weight, out=read_only)
