"""The CPU attention kernel: accuracy, independent rows, slots, and errors, in every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast import ops
from gitfast.ops import reference

from support.accuracy import BFLOAT16_ISAS, assert_as_good_as_numpy, poisoned, size_of_sum


def plain_attention(q, k, v, k_text, v_text, slots, scale=None):
    """Attention in the dtype of the arguments; all rows see one prefix."""
    text = {"k_text": k_text, "v_text": v_text, "slots": slots}
    return reference.prefix_attention(q, k[None], v[None], [0] * len(q), **text, scale=scale)


def problem(seed, rows, heads, prefix, stored, head_dim, lengths):
    rng = np.random.default_rng(seed)
    shapes = [(rows, heads, head_dim), *[(heads, prefix, head_dim)] * 2, *[(stored, heads, head_dim)] * 2]
    names = ("q", "k", "v", "k_text", "v_text")
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}
    slots = [rng.integers(0, stored, n).tolist() if stored else [] for n in lengths]
    return arrays, slots


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=20),
    heads=st.integers(1, 3),
    prefix=st.one_of(st.integers(0, 70), st.sampled_from([197, 257, 300])),
    stored=st.integers(0, 30),
    head_dim=st.one_of(st.integers(1, 80), st.sampled_from([64, 128, 300])),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([None, 1.0]),
)
@pytest.mark.parametrize("isa", ops.available_isas())
def test_attention_is_as_good_as_numpy(isa, lengths, heads, prefix, stored, head_dim, seed, scale):
    rows = len(lengths)
    arrays, slots = problem(seed, rows, heads, prefix, stored, head_dim, lengths)
    y = ops.prefix_attention(**arrays, slots=slots, scale=scale, out=poisoned(rows, heads, head_dim), isa=isa)
    factor = head_dim**-0.5 if scale is None else scale
    plain = plain_attention(*arrays.values(), slots, factor)
    truth = plain_attention(*(a.astype(np.float64) for a in arrays.values()), slots, factor)
    # The error of a score, a sum of head_dim products, is the relative error of its weight.
    assert_as_good_as_numpy(y, plain, truth, scale=4 * (1 + factor * size_of_sum(head_dim)))


@pytest.mark.parametrize("rows", [1, 5, 8, 197])
def test_a_row_does_not_depend_on_its_batch_or_on_threads(isa, rows):
    lengths = [r % 7 for r in range(rows)]
    arrays, slots = problem(rows, rows, 3, 197, 40, 64, lengths)
    together = ops.prefix_attention(**arrays, slots=slots, isa=isa)
    for r in {0, rows // 2, rows - 1}:
        alone = ops.prefix_attention(**(arrays | {"q": arrays["q"][r : r + 1]}), slots=slots[r : r + 1], isa=isa)
        np.testing.assert_array_equal(alone[0], together[r])
    threaded = ops.prefix_attention(**arrays, slots=slots, isa=isa, pool=ops.ThreadPool(2))
    np.testing.assert_array_equal(threaded, together)


@pytest.mark.skipif("avx512" not in ops.available_isas(), reason="needs AVX-512")
@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=9),
    prefix=st.integers(0, 300),
    head_dim=st.integers(1, 80),
)
def test_avx2_and_avx512_agree_to_the_bit(lengths, prefix, head_dim):
    arrays, slots = problem(prefix, len(lengths), 2, prefix, 20, head_dim, lengths)
    wide, narrow = (ops.prefix_attention(**arrays, slots=slots, isa=isa) for isa in ("avx512", "avx2"))
    np.testing.assert_array_equal(wide, narrow)


def test_slots_no_row_names_are_never_read(isa):
    arrays, slots = problem(0, 3, 2, 21, 50, 24, [4, 0, 9])
    expected = ops.prefix_attention(**arrays, slots=slots, isa=isa)
    unused = sorted(set(range(50)) - {s for row in slots for s in row})
    for name in ("k_text", "v_text"):
        arrays[name][unused] = np.nan
    np.testing.assert_array_equal(ops.prefix_attention(**arrays, slots=slots, isa=isa), expected)


def test_text_of_other_rows_does_not_leak(isa):
    arrays, slots = problem(1, 2, 2, 21, 10, 24, [3, 3])
    slots = [[0, 1, 2], [3, 4, 5]]
    expected = ops.prefix_attention(**arrays, slots=slots, isa=isa)
    arrays["k_text"][3:6] = arrays["v_text"][3:6] = np.nan
    y = ops.prefix_attention(**arrays, slots=slots, isa=isa)
    np.testing.assert_array_equal(y[0], expected[0])
    assert np.isnan(y[1]).all()


def test_a_row_without_keys_is_zero(isa):
    arrays, _ = problem(2, 3, 2, 0, 4, 16, [])
    y = ops.prefix_attention(**arrays, slots=[[], [1, 2], []], isa=isa)
    assert (y[[0, 2]] == 0).all()
    assert (y[1] != 0).all()


@pytest.mark.parametrize("size", [1e3, 1e18])
def test_large_scores_pick_one_key(isa, size):
    """The maximum is taken off before exp: nothing overflows, and the largest score wins alone."""
    keys = np.zeros((1, 40, 16), np.float32)
    keys[0, :, 0] = np.linspace(-size, size, 40)
    values = np.random.default_rng(0).standard_normal((1, 40, 16), np.float32)
    q = np.zeros((1, 1, 16), np.float32)
    q[..., 0] = 50
    np.testing.assert_array_equal(ops.prefix_attention(q, keys, values, isa=isa)[0, 0], values[0, -1])
    np.testing.assert_array_equal(ops.prefix_attention(-q, keys, values, isa=isa)[0, 0], values[0, 0])


def test_scores_beyond_what_is_rounded_to_units(isa):
    """Scores of 1e9 and more, whose product with the scale may be off by hundreds."""
    arrays, _ = problem(0, 5, 1, 40, 0, 24, [0] * 5)
    for size in (1e9, 1e10, 1e15):
        q = arrays["q"] * np.float32(size)
        scores = q[:, 0].astype(np.float64) @ arrays["k"][0].T.astype(np.float64)
        y = ops.prefix_attention(q, arrays["k"], arrays["v"], isa=isa)
        np.testing.assert_allclose(y[:, 0], arrays["v"][0][scores.argmax(axis=1)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFC001FF])
def test_a_key_that_is_no_number_is_not_left_out(isa, bits):
    """Whatever the bits of its NaN."""
    arrays, _ = problem(0, 5, 1, 40, 0, 24, [0] * 5)
    arrays["k"].view(np.uint32)[0, 7, 3] = bits
    assert np.isnan(ops.prefix_attention(arrays["q"], arrays["k"], arrays["v"], isa=isa)).all()


def test_wrong_arguments_get_one_clear_error():
    arrays, slots = problem(0, 2, 3, 5, 4, 8, [1, 1])
    cases = [
        ({"k": arrays["k"][:2]}, r"v: expected shape \(H=2, P=5, head_dim=8\), got \(3, 5, 8\)"),
        ({"v": arrays["v"][:, :4]}, r"v: expected shape \(H=3, P=5, head_dim=8\), got \(3, 4, 8\)"),
        ({"q": arrays["q"].astype(np.float64)}, r"q: unsupported dtype float64"),
        ({"q": arrays["q"].transpose(1, 0, 2).copy().transpose(1, 0, 2)}, r"q: expected a C-contiguous array"),
        ({"q": arrays["q"][:, 0]}, r"q: expected shape \(R, H=3, head_dim=8\), got \(2, 8\)"),
        ({"slots": [[0]]}, r"slots: expected one list for each of R=2 rows, got 1"),
        ({"slots": [[0]] * 3}, r"slots: expected one list for each of R=2 rows, got more"),
        ({"slots": [[0], [1] * 4_194_304]}, r"slots: expected at most 4194304 numbers"),
        ({"slots": [[0], [10**30]]}, r"slots\[1\]: expected numbers from 0 to 3, got"),
        ({"slots": [[0], [4]]}, r"slots\[1\]: expected numbers from 0 to 3, got 4"),
        ({"slots": [[-1], [0]]}, r"slots\[0\]: expected numbers from 0 to 3, got -1"),
        ({"v_text": None}, r"k_text, v_text: expected both or neither"),
        ({"scale": 0.0}, r"scale: expected a positive number, got 0"),
        ({"scale": float("nan")}, r"scale: expected a positive number, got nan"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            ops.prefix_attention(**({**arrays, "slots": slots} | change))
    for slots, message in [(5, r"slots: expected a list"), ([[0], 1], r"slots\[1\]"), ([[0.0], []], r"slots\[0\]")]:
        with pytest.raises(TypeError, match=message):
            ops.prefix_attention(**arrays, slots=slots)
    with pytest.raises(ValueError, match="v: a PackedPrefix holds its own values"):
        ops.prefix_attention(arrays["q"], ops.PackedPrefix(arrays["k"], arrays["v"]), arrays["v"])


def test_a_packed_prefix_is_the_same_prefix(isa):
    arrays, slots = problem(3, 4, 2, 37, 9, 20, [1, 2, 3, 0])
    packed = ops.PackedPrefix(arrays["k"], arrays["v"])
    assert packed.shape == (2, 37, 20)
    text = {"k_text": arrays["k_text"], "v_text": arrays["v_text"], "slots": slots, "isa": isa}
    expected = ops.prefix_attention(arrays["q"], arrays["k"], arrays["v"], **text)
    np.testing.assert_array_equal(ops.prefix_attention(arrays["q"], packed, **text), expected)


def test_exp_is_within_two_units_in_the_last_place(isa):
    """Two keys with scores x <= 0 and 0, values 1 and 0: the result is exp(x) / (1 + exp(x))."""
    x = -np.concatenate([np.linspace(0, 87.3, 100001), np.logspace(-8, 1, 1001)]).astype(np.float32)
    keys, values = np.array([1, 0], np.float32).reshape(1, 2, 1), np.array([1, 0], np.float32).reshape(1, 2, 1)
    y = ops.prefix_attention(x[:, None, None], keys, values, scale=1.0, isa=isa)[:, 0, 0]
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(y, e / (1 + e), rtol=2e-7)


def test_exp_far_below_the_largest_score_is_zero(isa):
    keys, values = np.array([1, 0], np.float32).reshape(1, 2, 1), np.array([1, 0], np.float32).reshape(1, 2, 1)
    q = -np.array([88, 104, 1e4, 1e30], np.float32)
    assert (ops.prefix_attention(q[:, None, None], keys, values, scale=1.0, isa=isa) == 0).all()


def bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    prefix=st.one_of(st.integers(0, 70), st.sampled_from([197, 300])),
    head_dim=st.one_of(st.integers(1, 80), st.sampled_from([64, 128, 300])),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("isa", ops.available_isas())
def test_a_prefix_in_bfloat16(isa, lengths, prefix, head_dim, seed):
    rows = len(lengths)
    arrays, slots = problem(seed, rows, 2, prefix, 30, head_dim, lengths)
    arrays["k"], arrays["v"] = bfloat16(arrays["k"]), bfloat16(arrays["v"])
    packed = ops.PackedPrefix(arrays["k"], arrays["v"], dtype="bfloat16")
    text = {"k_text": arrays["k_text"], "v_text": arrays["v_text"], "slots": slots}
    y = ops.prefix_attention(arrays["q"], packed, **text, out=poisoned(rows, 2, head_dim), isa=isa)
    truth = plain_attention(*(a.astype(np.float64) for a in arrays.values()), slots, head_dim**-0.5)
    plain = plain_attention(*arrays.values(), slots, head_dim**-0.5)
    if isa in BFLOAT16_ISAS:
        # Queries and weights lose bits: a score moves by 2^-9 of its size, which is about 1.
        np.testing.assert_allclose(y, truth, rtol=0, atol=2**-9 * 8)
    else:
        assert_as_good_as_numpy(y, plain, truth, scale=4 * (1 + size_of_sum(head_dim) * head_dim**-0.5))
    for r in {0, rows // 2, rows - 1}:  # and to the bit whatever the batch
        text["slots"] = slots[r : r + 1]
        np.testing.assert_array_equal(
            ops.prefix_attention(arrays["q"][r : r + 1], packed, **text, isa=isa), y[r : r + 1]
        )


def test_a_prefix_in_bfloat16_takes_half_the_bytes():
    k = np.ones((2, 32, 64), np.float32)
    assert ops.PackedPrefix(k, k, dtype="bfloat16").nbytes * 2 == ops.PackedPrefix(k, k).nbytes == 2 * k.nbytes
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'bfloat16', got 'int8'"):
        ops.PackedPrefix(k, k, dtype="int8")
