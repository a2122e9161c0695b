"""Input of ``advance``: layouts, wrong arrays, and values that are not finite."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from gitfast import _C

V, EOS = 33, 2
MODES = {
    "greedy": {},
    "rules": {"suppress_tokens": [4]},
    "beams": {"num_beams": 3},
    "samples": {"do_sample": True, "top_p": 0.9, "seed": 1},
}


def make(mode, items=2):
    return _C.Search({"eos_token_id": EOS, "max_new_tokens": 3} | MODES[mode], [[3]] * items, V)


def random_logits(seed=0, rows=2):
    return np.random.default_rng(seed).normal(size=(rows, V)).astype(np.float32)


def end(search, first):
    """Results after ``first``, then the same logits for whatever rows there are."""
    search.advance(first)
    while not search.done:
        search.advance(random_logits(1, search.num_rows))
    return search.results()


@pytest.mark.parametrize("mode", MODES)
def test_layouts(mode):
    logits = random_logits()
    wide = np.full((4, 3 * V), np.nan, np.float32)
    wide[::2, V : 2 * V] = logits
    shared = np.broadcast_to(logits[0], (2, V))
    expected = end(make(mode), logits)
    assert end(make(mode), wide[::2, V : 2 * V]) == expected
    assert end(make(mode), torch.from_numpy(logits)) == expected
    assert end(make(mode), shared) == end(make(mode), np.ascontiguousarray(shared))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (random_logits(rows=3), f"logits: expected shape (2, {V}), got (3, {V})"),
        (random_logits()[:, :-1], f"logits: expected shape (2, {V}), got (2, {V - 1})"),
        (random_logits()[0], f"logits: expected shape (2, {V}), got ({V},)"),
        (random_logits().astype(np.float16), "logits: expected dtype float32, got float16"),
        (np.asfortranarray(random_logits()), "logits: expected rows without gaps between their values"),
        ([[0.0]], "logits: expected an array, got list"),
    ],
)
def test_wrong_arrays(logits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make("greedy").advance(logits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("column", [0, 17, V - 1])
def test_not_a_number_is_refused_and_changes_nothing(mode, column):
    logits = random_logits()
    for value, what in [(np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, "+inf")]:
        search, bad = make(mode), logits.copy()
        bad[1, column] = value
        with pytest.raises(ValueError, match=re.escape(f"logits: {what} in row 1")):
            search.advance(bad)
        assert end(search, logits) == end(make(mode), logits)


@pytest.mark.parametrize("mode", MODES)
def test_impossible_tokens(mode):
    """Minus infinity means a probability of zero, unless every logit is minus infinity."""
    logits = np.full((2, V), -np.inf, np.float32)
    logits[:, [7, 8, 9, 10]] = [1.0, 2.0, 3.0, 0.0]
    search = make(mode)
    search.advance(logits)
    assert set(search.tokens) <= {7, 8, 9, 10}
    with pytest.raises(ValueError, match="logits: nothing but -inf in row 0"):
        search.advance(np.full((search.num_rows, V), -np.inf, np.float32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only", [EOS, 4])
def test_only_one_possible_token(mode, only):
    """The only possible token is chosen, also when a rule bans it."""
    logits = np.full((2, V), -np.inf, np.float32)
    logits[:, only] = 0
    search = make(mode)
    while not search.done:
        search.advance(np.broadcast_to(logits[0], (search.num_rows, V)))
    for item in search.results():
        (tokens, logprobs, score, reason), *others = item
        assert not others
        if only == EOS:
            assert (tokens, logprobs, score, reason) == ([EOS], [0.0], 0.0, "stop")
        elif mode == "rules":
            assert (tokens, logprobs, score, reason) == ([EOS], [-np.inf], -np.inf, "stop")
        else:
            assert (tokens, logprobs, score, reason) == ([4] * 3, [0.0] * 3, 0.0, "length")


@pytest.mark.parametrize("mode", MODES)
def test_large_logits(mode):
    for scale in [1e3, 1e30, 3e38]:
        results = end(make(mode), np.clip(random_logits(), -1, 1) * np.float32(scale))
        assert all(tokens and np.isfinite(logprobs).all() for (tokens, logprobs, *_), *_ in results)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 511, 512, 513, 1000, 30522])
def test_log_softmax(n):
    """Against float64: the error of the sum of exponentials, and one rounding."""
    rng = np.random.default_rng(n)
    for scale in [0.1, 3.0, 30.0]:
        logits = (rng.normal(size=(1, n + 1)) * scale).astype(np.float32)
        search = _C.Search({"eos_token_id": 0}, [[0]], n + 1)
        search.advance(logits)
        ((tokens, logprobs, *_),) = stopped(search)
        exact = logits[0].astype(np.float64)
        assert tokens == [int(logits.argmax())]
        expected = (exact - np.logaddexp.reduce(exact))[tokens[0]]
        assert abs(logprobs[0] - expected) < 3e-7 + 6e-8 * abs(expected)


def stopped(search):
    search.stop()
    return search.results()[0]


def test_argmax_takes_the_first_of_equals():
    for size in [5, 16, 100, 1003]:
        for place in range(0, size - 1, 7):
            logits = np.zeros((1, size), np.float32)
            logits[0, place:] = 1
            search = _C.Search({"eos_token_id": 0}, [[0]], size)
            search.advance(logits)
            assert stopped(search)[0][0] == [place]


def test_advance_after_the_end():
    search = make("greedy")
    search.stop()
    with pytest.raises(ValueError, match="advance: the search is done"):
        search.advance(np.empty((0, V), np.float32))
