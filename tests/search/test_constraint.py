"""Generation confined to given continuations."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.types import GenerationOptions

from support.language import EOS, Language, transformers_generate
from support.tiers import examples

V = 30
PROMPT = [3, 4]
# Prefixes of one another, a duplicate, one that differs in its last token only, a long one.
LABELS = [[5], [5, 6], [5, 6, 7], [5, 6], [5, 6, 8], [9, 9], [10, 11, 12, 13, 14, 15], [20]]

continuations = st.lists(st.lists(st.integers(3, 7), max_size=4), min_size=1, max_size=8)


def allowed_after(labels, prompt_length):
    """The constraint as transformers takes it."""

    def allowed(_, ids):
        new_tokens = ids.tolist()[prompt_length:]
        following = {[*label, EOS][len(new_tokens)] for label in labels if label[: len(new_tokens)] == new_tokens}
        return sorted(following) or [EOS]

    return allowed


@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_equals_transformers(num_beams):
    rng = random.Random(num_beams)
    for seed in range(examples(60)):
        language = Language.random(seed, V, eos_bias=-2.0)
        labels = [[rng.randrange(3, 8) for _ in range(rng.randrange(1, 5))] for _ in range(rng.choice([12, 40]))]
        kwargs = {"max_new_tokens": 6, "num_beams": num_beams, "early_stopping": rng.choice([False, "never"])}
        options = GenerationOptions(allowed_token_ids=labels, **kwargs)
        (expected,) = transformers_generate(
            language, [PROMPT], do_sample=False, prefix_allowed_tokens_fn=allowed_after(labels, 2), **kwargs
        )
        ((found,),) = language.generate(options, [PROMPT])
        assert found.token_ids == expected.token_ids[0]
        if expected.scores is not None:
            assert found.score == pytest.approx(expected.scores[0], rel=1e-6, abs=1e-5)


@settings(max_examples=examples(80), deadline=None)
@given(seed=st.integers(0, 10**6), labels=continuations, length_penalty=st.sampled_from([0.0, 1.0]))
def test_beams_find_every_continuation(seed, labels, length_penalty):
    language = Language.random(seed, V)
    options = GenerationOptions(
        num_beams=10, num_return_sequences=10, allowed_token_ids=labels, length_penalty=length_penalty
    )
    (found,) = language.generate(options, [PROMPT])
    distinct = {(*label, EOS) for label in labels}
    assert {tuple(g.token_ids) for g in found} == distinct
    assert len(found) == len(distinct)
    for g in found:
        expected = language.score(PROMPT, g.token_ids) / len(g.token_ids) ** length_penalty
        assert g.score == pytest.approx(expected, rel=1e-6, abs=1e-5)


@settings(max_examples=examples(80), deadline=None)
@given(
    seed=st.integers(0, 10**6),
    labels=continuations,
    mode=st.sampled_from([{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 5, "top_p": 0.9}]),
    rules=st.sampled_from([{}, {"min_new_tokens": 4}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [5, EOS]}]),
)
def test_results_are_always_allowed(seed, labels, mode, rules):
    """Other rules choose among the continuations where they can, and give way where they leave none."""
    options = GenerationOptions(allowed_token_ids=labels, seed=seed, **mode, **rules)
    for item in Language.random(seed, V).generate(options, [PROMPT, [8]]):
        assert item
        for g in item:
            assert g.token_ids[-1] == EOS
            assert g.token_ids[:-1] in labels


def test_another_rule_chooses_where_it_can():
    language = Language.random(0, V)
    options = GenerationOptions(allowed_token_ids=[[5, 6], [5, 7], [8]], min_new_tokens=3, suppress_tokens=[6])
    assert language.generate(options, [PROMPT])[0][0].token_ids == [5, 7, EOS]


def test_end_of_sequence_may_be_given():
    language = Language.random(0, V)
    with_end = GenerationOptions(num_beams=2, allowed_token_ids=[[*label, EOS] for label in LABELS])
    without = GenerationOptions(num_beams=2, allowed_token_ids=LABELS)
    assert language.generate(with_end, [PROMPT]) == language.generate(without, [PROMPT])


def test_empty_continuation_is_the_end():
    options = GenerationOptions(allowed_token_ids=[[]])
    assert Language.random(0, V).generate(options, [PROMPT])[0][0].token_ids == [EOS]


def test_continuation_as_long_as_max_new_tokens_ends_by_length():
    options = GenerationOptions(allowed_token_ids=[[5, 6, 7]], max_new_tokens=3)
    ((g,),) = Language.random(0, V).generate(options, [PROMPT])
    assert (g.token_ids, g.finish_reason) == ([5, 6, 7], "length")


def log_probability(language, labels, label):
    """The product over its tokens of the probability among what the labels allow."""
    total, allowed = 0.0, allowed_after(labels, 0)
    for i, token in enumerate([*label, EOS]):
        logprobs = language.log_probabilities(PROMPT + label[:i])
        total += logprobs[token] - np.logaddexp.reduce(logprobs[allowed(0, np.array(label[:i]))])
    return total


def test_samples_follow_the_label_probabilities():
    language = Language.random(4, V)
    n = 4000
    options = GenerationOptions(allowed_token_ids=LABELS, do_sample=True, num_return_sequences=n, seed=3)
    (samples,) = language.generate(options, [PROMPT])
    for label in LABELS:
        p = np.exp(log_probability(language, LABELS, label))
        count = sum(g.token_ids[:-1] == label for g in samples)
        assert abs(count - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 1
