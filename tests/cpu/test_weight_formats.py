"""``linear`` over weights of fewer bits multiplies exactly the rounded weights, by activations that are rounded to
bfloat16, or to whole numbers, where the instruction set multiplies those."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gitfast import ops

from support.accuracy import BFLOAT16_ISAS, assert_right_up_to_rounding, poisoned

ISAS = ops.available_isas()
DTYPES = ["bfloat16", "int8", "w8a8"]
# Where w8a8 is not int8, and where int8 is multiplied as int16.
BYTES = ("avx2_vnni", "avx512_vnni", "avx512_bf16", "avx512_bf16_vnni", "neon_dot", "neon_bf16")
INT16 = ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16_vnni")

# Around the tile heights, the panel width (32), the terms of a word (2, 4) and the block of a sum (256).
ROWS = st.one_of(st.integers(0, 30), st.sampled_from([197, 210]))
COLUMNS = st.one_of(st.integers(1, 140), st.sampled_from([256, 300]))
TERMS = st.one_of(st.integers(1, 80), st.sampled_from([255, 256, 257, 259, 512, 1022]))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().float().numpy()


def stored(weight: np.ndarray, dtype: str) -> np.ndarray:
    """The weights as they are kept, float64."""
    if dtype == "bfloat16":
        return bfloat16(weight).astype(np.float64)
    largest = np.abs(weight).max(axis=1, keepdims=True)
    whole = np.rint(weight * (np.float32(127) / largest))  # in float32: near halves it matters
    return whole.astype(np.float64) * (largest / np.float32(127))


def whole_numbers(x: np.ndarray, bits: int) -> np.ndarray:
    """Each 256 values of a row in units of a power of two, the largest of them below 2^bits units; they saturate."""
    result = np.empty(x.shape, np.float64)
    for k in range(0, x.shape[1], 256):
        block = x[:, k : k + 256].astype(np.float64)
        exponents = np.frexp(np.abs(block).max(axis=1, keepdims=True))[1]
        units = 2.0 ** (exponents - bits)
        result[:, k : k + 256] = np.rint(block / units).clip(max=2**15 - 1) * units
    return result


def whole_bytes(x: np.ndarray) -> np.ndarray:
    """Each 256 values of a row in units of which the largest is 127."""
    result = np.empty(x.shape, np.float64)
    for k in range(0, x.shape[1], 256):
        block = x[:, k : k + 256]
        largest = np.abs(block).max(axis=1, keepdims=True)
        inverse = np.float32(127) / largest  # in float32: near halves it matters
        result[:, k : k + 256] = np.rint(block * inverse).astype(np.float64) * (largest / np.float32(127))
    return result


def multiplied(x: np.ndarray, isa: str, dtype: str) -> np.ndarray:
    """Round x as ``linear`` does; return float64."""
    if dtype == "w8a8" and isa in BYTES:
        return whole_bytes(x)
    if dtype != "bfloat16" and isa in INT16:
        return whole_numbers(x, bits=15)
    if dtype != "bfloat16" and isa in ("neon_dot", "neon_bf16"):
        return whole_numbers(x, bits=14)
    return (bfloat16(x) if isa in BFLOAT16_ISAS else x).astype(np.float64)


@settings(deadline=None)
@given(m=ROWS, n=COLUMNS, k=TERMS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16))
@pytest.mark.parametrize("isa", ISAS)
def test_products_of_what_is_stored(isa, m, n, k, dtype, seed):
    x, weight, bias, residual = normal(seed, m, k), normal(seed + 1, n, k), normal(seed + 2, n), normal(seed + 3, m, n)
    weight[0] = 0  # a column without a scale
    packed = ops.PackedWeight(weight, bias, dtype=dtype)
    y = ops.linear(x, packed, residual=residual, out=poisoned(m, n), isa=isa)
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = np.nan_to_num(stored(weight, dtype))
    factor = multiplied(x, isa, dtype)
    assert_right_up_to_rounding(y, factor @ kept.T + bias + residual, factor, kept)


@settings(deadline=None)
@given(m=ROWS, n=COLUMNS, k=TERMS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16))
def test_small_whole_numbers_are_exact(m, n, k, dtype, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.integers(-8, 9, (m, k)), rng.integers(-100, 101, (n, k))
    weight[:, 0] = x[:, ::256] = 127  # the scales and the units of bytes are 1
    packed = ops.PackedWeight(weight.astype(np.float32), dtype=dtype)
    for isa in ISAS:
        y = ops.linear(x.astype(np.float32), packed, out=poisoned(m, n), isa=isa)
        np.testing.assert_array_equal(y, x @ weight.T)


@settings(deadline=None)
@given(m=st.integers(1, 220), n=COLUMNS, k=TERMS, dtype=st.sampled_from(DTYPES))
@example(m=211, n=70, k=1022, dtype="int8")
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_depend_on_its_batch(isa, m, n, k, dtype):
    x, weight = normal(m, m, k), ops.PackedWeight(normal(n, n, k), normal(k, n), dtype=dtype)
    together = ops.linear(x, weight, activation="gelu", isa=isa)
    for first, last in [(0, 1), (m // 2, m // 2 + 1), (m - 1, m), (0, m - 1), (m // 3, m)]:
        part = ops.linear(x[first:last], weight, activation="gelu", isa=isa)
        np.testing.assert_array_equal(part, together[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_strides_do_not_change_a_bit(isa, dtype):
    wide, weight = normal(0, 26, 400), ops.PackedWeight(normal(1, 1000, 301), normal(2, 1000), dtype=dtype)
    x = wide[::2, 50:351]
    alone = ops.linear(np.ascontiguousarray(x), weight, isa=isa)
    for threads in (1, 2, 7):
        y = ops.linear(x, weight, out=poisoned(13, 1000), isa=isa, pool=ops.ThreadPool(threads))
        np.testing.assert_array_equal(y, alone)


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [
        (isa, dtype)
        for isa in ISAS
        for dtype in ("bfloat16", "int8")
        if isa in INT16 and isa != "avx2" and (dtype == "int8" or isa not in BFLOAT16_ISAS)
    ],
)
def test_avx2_and_avx512_agree_to_the_bit(isa, dtype):
    x, weight = normal(0, 40, 700), ops.PackedWeight(normal(1, 100, 700), dtype=dtype)
    wide, narrow = (ops.linear(x, weight, isa=isa) for isa in (isa, "avx2"))
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.skipif(len(set(BYTES) & set(ISAS)) < 2, reason="needs two instruction sets with products of bytes")
def test_instruction_sets_with_products_of_bytes_agree_to_the_bit():
    x, weight = normal(0, 40, 700), ops.PackedWeight(normal(1, 100, 700), dtype="w8a8")
    first, *others = (ops.linear(x, weight, isa=isa) for isa in ISAS if isa in BYTES)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in BYTES])
def test_w8a8_is_int8_where_bytes_are_not_multiplied(isa):
    x, weight = normal(0, 40, 700), normal(1, 100, 700)
    bytes_, wholes = (ops.linear(x, ops.PackedWeight(weight, dtype=dtype), isa=isa) for dtype in ("w8a8", "int8"))
    np.testing.assert_array_equal(bytes_, wholes)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in BYTES])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_bytes_of_the_largest_magnitudes_do_not_overflow(isa, rows):
    """Every sum of a block is the largest there is, of either sign."""
    x = np.full((rows, 1024), 127, np.float32)
    x[::2] *= -1
    weight = np.full((40, 1024), 127, np.float32)
    weight[::3] *= -1
    y = ops.linear(x, ops.PackedWeight(weight, dtype="w8a8"), isa=isa)
    np.testing.assert_array_equal(y, x @ weight.T)


@pytest.mark.parametrize("dtype", ["int8", "w8a8"])
def test_values_that_are_not_finite_stay_in_their_row(isa, dtype):
    x, weight = normal(0, 3, 300), ops.PackedWeight(normal(1, 40, 300), dtype=dtype)
    x[1, 290] = np.inf
    y, expected = ops.linear(x, weight, isa=isa), ops.linear(x[::2], weight, isa=isa)
    assert not np.isfinite(y[1]).any()
    np.testing.assert_array_equal(y[::2], expected)


@pytest.mark.parametrize("dtype", ["int8", "w8a8"])
def test_magnitudes_of_float32(isa, dtype):
    """A row keeps its precision down to 2^-95, and up to near the largest numbers."""
    row, weight = normal(0, 1, 300), normal(1, 40, 300)
    packed = ops.PackedWeight(weight, dtype=dtype)
    usual = ops.linear(row, packed, isa=isa)
    for power in (-95, -40, 40, 80):
        np.testing.assert_array_equal(ops.linear(row * np.float32(2.0**power), packed, isa=isa), usual * 2.0**power)


def test_bfloat16_is_rounded_as_torch_rounds():
    """Ties to even, subnormals, infinities; NaN stays NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)
    values = values[np.abs(values) > 2.0**-100]  # CPUs take subnormal factors for zero
    y = ops.linear(np.ones((1, 1), np.float32), ops.PackedWeight(values[:, None], dtype="bfloat16"), isa="scalar")
    np.testing.assert_array_equal(y[0], bfloat16(values))
    not_numbers = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    packed = ops.PackedWeight(not_numbers[:, None], dtype="bfloat16")
    for isa in ISAS:
        assert np.isnan(ops.linear(np.ones((1, 1), np.float32), packed, isa=isa)).all()


@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="needs AVX-512 BF16")
@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 100])
def test_activations_are_rounded_as_torch_rounds(k):
    x = normal(k, 5, k)
    eye = ops.PackedWeight(np.eye(k, dtype=np.float32), dtype="bfloat16")
    np.testing.assert_array_equal(ops.linear(x, eye, isa="avx512_bf16"), bfloat16(x))


@pytest.mark.parametrize("dtype", ["int8", "w8a8"])
def test_every_int8_is_widened_exactly(isa, dtype):
    weight = np.arange(-127, 128, dtype=np.float32)
    for rows in (1, 40):  # both paths
        for k in (1, 2, 3, 4):  # every place of a word
            wide = np.zeros((255, k), np.float32)
            wide[:, k - 1] = weight
            x = np.zeros((rows, k), np.float32)
            x[:, k - 1] = 1
            packed = ops.PackedWeight(np.concatenate([wide, np.full((255, 1), 127, np.float32)], axis=1), dtype=dtype)
            y = ops.linear(np.concatenate([x, np.zeros((rows, 1), np.float32)], axis=1), packed, isa=isa)
            unit = np.float32(1) / np.float32(127)  # of bytes; 127 of them are a little more or less than 1
            ones = weight * 127 * unit if dtype == "w8a8" and isa in BYTES else weight
            np.testing.assert_array_equal(y, np.tile(ones, (rows, 1)))


def test_half_precision_weights_are_stored_as_their_values():
    weight = normal(0, 50, 100).astype(np.float16)
    x = normal(1, 3, 100)
    for dtype in DTYPES:
        a, b = (ops.PackedWeight(w, dtype=dtype) for w in (weight, weight.astype(np.float32)))
        np.testing.assert_array_equal(ops.linear(x, a), ops.linear(x, b))


def test_bytes_held():
    weight, bias = np.ones((64, 100), np.float32), np.ones(64, np.float32)
    held = {dtype: ops.PackedWeight(weight, bias, dtype=dtype).nbytes for dtype in ("float32", *DTYPES)}
    assert held == {"float32": 64 * 404, "bfloat16": 64 * 204, "int8": 64 * 108, "w8a8": 64 * 108}


def test_wrong_arguments_get_one_clear_error():
    weight = np.ones((3, 8), np.float32)
    with pytest.raises(ValueError, match="dtype: expected 'float32', 'bfloat16', 'int8' or 'w8a8', got 'int4'"):
        ops.PackedWeight(weight, dtype="int4")
    for value in (np.nan, np.inf):
        weight[1, 2] = value
        with pytest.raises(ValueError, match="weight: int8: expected finite weights, got one that is not"):
            ops.PackedWeight(weight, dtype="int8")
        assert ops.PackedWeight(weight, dtype="bfloat16").dtype == "bfloat16"
