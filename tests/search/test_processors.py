"""Each rule against transformers' LogitsProcessors, in greedy search and with beams."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from gitfast.types import GenerationOptions

from support.language import EOS, Language, transformers_generate
from support.tiers import examples, slow

V = 24
LONG = [5, 6, 7, 6, 5]

RULES = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition_reward": {"repetition_penalty": 0.6},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "ngrams_longer_than_the_prompt": {"no_repeat_ngram_size": 6},
    "bad_words": {"bad_words_ids": [[7], [9, 9], [6, 5, 11], [3, 4], [EOS], [1, 2, 3, 4, 5, 6, 7, 8]]},
    "min_new_tokens": {"min_new_tokens": 6},
    "suppress_tokens": {"suppress_tokens": [4, 5, 6, 7, 8]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 20))},
    "forced_bos": {"forced_bos_token_id": 13},
    "forced_bos_then_begin": {"forced_bos_token_id": 13, "begin_suppress_tokens": list(range(3, 20))},
    "forced_eos": {"forced_eos_token_id": EOS, "min_new_tokens": 8},
    "forced_end": {"forced_eos_token_id": 17},
    "together": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[8], [10, 11]],
        "min_new_tokens": 4,
        "suppress_tokens": [20],
        "begin_suppress_tokens": [5, 6],
        "forced_bos_token_id": 9,
        "forced_eos_token_id": EOS,
    },
}


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_equals_transformers(rule, num_beams):
    changed = False
    for seed, prompts in enumerate([[[1]], [[1, 9]], [LONG], [LONG, LONG[::-1]], [LONG]] * 3):
        language = Language.random(seed, V, eos_bias=3.0 * (seed % 2) - 1, contexts=7)
        plain = {"max_new_tokens": 9, "num_beams": num_beams}
        kwargs = plain | RULES[rule]
        expected = transformers_generate(language, prompts, do_sample=False, **kwargs)
        found = language.generate(GenerationOptions(**kwargs), prompts)
        for item, other in zip(found, expected, strict=True):
            assert [g.token_ids for g in item] == other.token_ids
            if other.scores is not None:
                assert [g.score for g in item] == pytest.approx(other.scores, rel=1e-6, abs=1e-5)
        changed = changed or found != language.generate(GenerationOptions(**plain), prompts)
    assert changed, "a rule that changes nothing shows nothing"


@pytest.mark.parametrize("num_beams", [1, slow(2), 4])
def test_random_rules_equal_transformers(num_beams):
    rng = random.Random(num_beams)
    for seed in range(examples(120)):
        vocab_size = rng.choice([24, 200])
        language = Language.random(seed, vocab_size, eos_bias=rng.choice([-2.0, 2.0]))
        length = rng.choice([1, 4])
        prompts = [[rng.randrange(3, vocab_size) for _ in range(length)] for _ in range(2)]
        kwargs = {"max_new_tokens": 8, "num_beams": num_beams}
        for rule in rng.sample(sorted(RULES), 2):
            kwargs |= RULES[rule]
        expected = transformers_generate(language, prompts, do_sample=False, **kwargs)
        for item, other in zip(language.generate(GenerationOptions(**kwargs), prompts), expected, strict=True):
            assert [g.token_ids for g in item] == other.token_ids


def test_log_probabilities_are_those_of_the_model():
    """Log-probabilities do not depend on what the rules make of the scores."""
    language = Language.random(1, V)
    for num_beams in [1, 3]:
        options = GenerationOptions(max_new_tokens=6, num_beams=num_beams, **RULES["together"])
        ((g, *_),) = language.generate(options, [LONG])
        for i, token in enumerate(g.token_ids):
            expected = language.log_probabilities(LONG + g.token_ids[:i])[token]
            assert g.token_logprobs[i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_ban_last_token(num_beams):
    """No new token repeats the new one before; the first may repeat the prompt's last, as in Microsoft's search."""
    table = np.zeros((97, 6), np.float32)
    table[:, 4], table[:, 5] = 3.0, 2.0
    options = GenerationOptions(max_new_tokens=5, num_beams=num_beams, ban_last_token=True, min_new_tokens=5)
    ((g, *_),) = Language(table).generate(options, [[4]])
    assert g.token_ids == [4, 5, 4, 5, 4]


def greedy_without_repeats(language, prompt, max_new_tokens):
    """Greedy search with ``ban_last_token``, in plain Python."""
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and tokens[-1:] != [EOS]:
        logits = language.logits(prompt + tokens).copy()
        logits[tokens[-1:]] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens


def test_ban_last_token_in_greedy_search():
    changed = False
    for seed in range(30):
        language = Language.random(seed, V, contexts=5)
        options = {"max_new_tokens": 9}
        ((found,),) = language.generate(GenerationOptions(ban_last_token=True, **options), [[5, 6]])
        assert found.token_ids == greedy_without_repeats(language, [5, 6], 9)
        changed = changed or [found] != language.generate(GenerationOptions(**options), [[5, 6]])[0]
    assert changed, "a rule that changes nothing shows nothing"


def test_ban_last_token_with_beams():
    """So many beams that nothing is pruned find every sequence that repeats no token at once, and no other."""
    for seed in range(10):
        language = Language.random(seed, 4)
        sequences = [s for s in language.sequences(3) if all(a != b for a, b in itertools.pairwise(s))]
        options = GenerationOptions(num_beams=40, num_return_sequences=40, max_new_tokens=3, ban_last_token=True)
        (found,) = language.generate(options, [[3]])
        assert {tuple(g.token_ids) for g in found} == {tuple(s) for s in sequences}
        for g in found:
            assert g.score == pytest.approx(language.score([3], g.token_ids) / len(g.token_ids), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("sample", [False, True])
def test_rules_that_leave_no_token_end_the_sequence(num_beams, sample):
    if sample and num_beams > 1:
        return
    language = Language.random(2, 6)
    options = GenerationOptions(
        max_new_tokens=9, num_beams=num_beams, do_sample=sample, seed=0, no_repeat_ngram_size=1, min_new_tokens=9
    )
    ((g, *_),) = language.generate(options, [[3]])
    assert (len(g.token_ids), g.token_ids[-1], g.finish_reason) == (5, EOS, "stop")
    assert sorted(g.token_ids[:-1]) == [0, 1, 4, 5]
    assert sum(g.token_logprobs) == pytest.approx(language.score([3], g.token_ids), abs=1e-5)
