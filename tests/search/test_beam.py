"""Beam search against transformers and against the enumeration of every sequence there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast import _C
from gitfast.types import GenerationOptions

from support.language import EOS, Language, transformers_generate
from support.tiers import examples, slow

PROMPTS = [[3, 4], [4, 4], [1, 3]]


def close(score: float, expected: float) -> bool:
    """Scores are sums in float32, and torch rounds its log-softmax in its own way."""
    return score == pytest.approx(expected, rel=1e-6, abs=1e-5)


def assert_equals_transformers(language, prompts, options, **kwargs):
    expected = transformers_generate(language, prompts, do_sample=False, **kwargs)
    for item, found in zip(language.generate(options, prompts), expected, strict=True):
        assert [g.token_ids for g in item] == found.token_ids
        assert all(close(g.score, score) for g, score in zip(item, found.scores, strict=True))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("num_beams", [2, 3, slow(4), slow(5)])
@pytest.mark.parametrize("length_penalty", [-1.0, slow(0.0), 0.6, 1.0, slow(2.0)])
def test_equals_transformers(num_beams, length_penalty, early_stopping):
    for seed, vocab_size in enumerate([10, 40, 300]):
        language = Language.random(seed, vocab_size, eos_bias=2.0)
        kwargs = {
            "num_beams": num_beams,
            "num_return_sequences": 1 + seed % num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_new_tokens": 9,
        }
        assert_equals_transformers(language, PROMPTS, GenerationOptions(**kwargs), **kwargs)


def equal_choices(seed: int, vocab_size: int) -> Language:
    """Everywhere half of the tokens are equally likely and the others impossible, for every float32 arithmetic."""
    rng = np.random.default_rng(seed)
    table = np.full((97, vocab_size), -200.0, np.float32)
    for row in table:
        row[rng.permutation(vocab_size)[: vocab_size // 2]] = 0
    return Language(table)


# Below 128 tokens torch.topk selects in one way, from there on in another.
@pytest.mark.parametrize("vocab_size", [20, 60, 127, 128, 150, 1000])
def test_ties_are_broken_as_torch_topk_breaks_them(vocab_size):
    in_order_of_index = []
    for seed, num_beams in enumerate([2, 3, 4, 5]):
        language = equal_choices(seed, vocab_size)
        kwargs = {"num_beams": num_beams, "num_return_sequences": num_beams, "max_new_tokens": 4}
        assert_equals_transformers(language, PROMPTS, GenerationOptions(**kwargs), **kwargs)
        found = [g.token_ids for g in language.generate(GenerationOptions(**kwargs), PROMPTS)[0]]
        in_order_of_index.append(found == sorted(found))
    assert not all(in_order_of_index), "ties in order of index would show nothing"


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(3, 4),
    max_new_tokens=st.integers(1, 3),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    form=st.sampled_from(["transformers", "paper"]),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=3),
)
def test_enough_beams_find_every_sequence(seed, vocab_size, max_new_tokens, length_penalty, form, prompt):
    language = Language.random(seed, vocab_size)
    sequences = list(language.sequences(max_new_tokens))
    options = GenerationOptions(
        num_beams=len(sequences) + 2,
        num_return_sequences=len(sequences) + 2,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        length_penalty_form=form,
    )

    def score(tokens):
        length = len(tokens)
        if form == "paper":
            length = (5 + len(prompt) + length - (tokens[-1] == EOS)) / 6
        return language.score(prompt, tokens) / length**length_penalty

    (found,) = language.generate(options, [prompt])
    assert {tuple(g.token_ids) for g in found} == {tuple(s) for s in sequences}
    assert all(close(g.score, score(g.token_ids)) for g in found)
    assert [g.score for g in found] == sorted((g.score for g in found), reverse=True)
    for g in found:
        assert g.finish_reason == ("stop" if g.token_ids[-1] == EOS else "length")
        assert sum(g.token_logprobs) == pytest.approx(language.score(prompt, g.token_ids), rel=1e-6, abs=1e-5)


def test_items_do_not_depend_on_their_batch():
    language = Language.random(3, 50, eos_bias=2.0)
    options = GenerationOptions(num_beams=4, num_return_sequences=4, max_new_tokens=12)
    prompts = [[3], [4, 5, 6], [7, 8], [9, 10, 11, 12]]
    alone = [language.generate(options, [prompt])[0] for prompt in prompts]
    for order in itertools.permutations(range(4)):
        assert language.generate(options, [prompts[i] for i in order]) == [alone[i] for i in order]


def test_rows_of_an_item():
    """One row for the prompt, then one per beam, and none when the item is done; parents name the rows before."""
    language = Language.random(0, 20)
    language.table[:] = language.table[0]
    search = _C.Search({"num_beams": 3, "max_new_tokens": 3, "eos_token_id": EOS}, [[3], [4, 5]], 20)
    assert (search.num_rows, search.items, search.tokens) == (2, [0, 1], [])
    search.advance(np.stack([language.logits([3])] * 2))
    assert search.items == [0, 0, 0, 1, 1, 1]
    assert search.parents == [0, 0, 0, 1, 1, 1]
    assert search.tokens[:3] == search.tokens[3:]
    search.advance(np.stack([language.logits([3])] * 6))
    assert search.items == [0, 0, 0, 1, 1, 1]
    assert set(search.parents[:3]) <= {0, 1, 2}
    assert set(search.parents[3:]) <= {3, 4, 5}
    search.advance(np.stack([language.logits([3])] * 6))
    assert (search.done, search.num_rows, search.items, search.parents) == (True, 0, [], [])


def test_stop_keeps_what_there_is():
    language = Language.random(5, 30)
    search = _C.Search({"num_beams": 3, "num_return_sequences": 3, "eos_token_id": EOS}, [[3]], 30)
    search.advance(language.logits([3])[None])
    search.advance(np.stack([language.logits([3, token]) for token in search.tokens]))
    search.stop()
    assert search.done
    (found,) = search.results()
    assert [reason for *_, reason in found] == ["length"] * 3
    for tokens, _, score, _ in found:
        assert len(tokens) == 2
        assert close(score, language.score([3], tokens) / 2)


def test_stop_before_the_first_step():
    search = _C.Search({"num_beams": 3, "eos_token_id": EOS}, [[3]], 30)
    search.stop()
    assert search.results() == [[([], [], 0.0, "length")]]


def test_scores_below_all_that_is_set_aside():
    """transformers sets scores of -1e9 aside; a sequence less likely than that is still a result."""
    table = np.full((97, 6), -3e12, np.float32)
    table[:, 0] = 0
    language = Language(table)
    options = GenerationOptions(num_beams=2, max_new_tokens=3, suppress_tokens=[0])
    ((found,),) = language.generate(options, [[3]])
    assert found.token_ids
    assert found.score <= -3e12
