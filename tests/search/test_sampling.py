"""Samples: their distribution is transformers', and they depend on seed, prompt, sample and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gitfast.types import GenerationOptions

from support.language import EOS, Language

V = 40
WARPERS = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}

CASES = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "top_k": {"top_k": 7},
    "top_k_beyond_the_vocabulary": {"top_k": 100},
    "top_p": {"top_p": 0.7},
    "top_p_small": {"top_p": 0.05},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
}


def warped_probabilities(logits: np.ndarray, options: dict) -> np.ndarray:
    scores = torch.from_numpy(logits)[None]
    for name, warper in WARPERS.items():
        if name in options:
            scores = warper(options[name])(None, scores)
    return scores.double().softmax(-1)[0].numpy()


def sample(language, options, prompt, n, seed):
    (found,) = language.generate(
        GenerationOptions(do_sample=True, num_return_sequences=n, seed=seed, **options), [prompt]
    )
    return [g.token_ids for g in found]


def assert_fits(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square against expected counts; rare tokens are pooled. Fixed seeds, so this fails or passes for good."""
    n = counts.sum()
    assert (counts[probabilities == 0] == 0).all()
    order = np.argsort(probabilities)
    pooled = np.cumsum(probabilities[order] * n) < 8
    expected = np.append(probabilities[order][~pooled] * n, probabilities[order][pooled].sum() * n)
    observed = np.append(counts[order][~pooled], counts[order][pooled].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    # Wilson and Hilferty 1931: the cube root of chi-square / freedom is close to normal; 4 sigma.
    if freedom:
        z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
        assert z < 4, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"


@pytest.mark.parametrize("case", CASES)
def test_first_tokens_follow_transformers_probabilities(case):
    for seed in range(3):
        language = Language.random(seed, V)
        probabilities = warped_probabilities(language.logits([3]), CASES[case])
        tokens = sample(language, CASES[case] | {"max_new_tokens": 1}, [3], 4000, seed)
        assert_fits(np.bincount([t[0] for t in tokens], minlength=V), probabilities)


def test_later_tokens_follow_their_own_distribution():
    """Steps are independent: the pairs of first and second token have the product's distribution."""
    language = Language.random(1, 6, eos_bias=-50.0)
    first = np.exp(language.log_probabilities([3]))
    joint = np.concatenate([first[t] * np.exp(language.log_probabilities([3, t])) for t in range(6)])
    tokens = sample(language, {"max_new_tokens": 2}, [3], 4000, 5)
    assert_fits(np.bincount([6 * a + b for a, b in tokens], minlength=36), joint)


def test_seeds_and_prompts_differ_and_the_distribution_does_not():
    language = Language(np.zeros((1, V), np.float32))
    options = {"max_new_tokens": 1}
    counts = np.zeros(V, int)
    drawn = set()
    for seed in range(40):
        for prompt in [[3], [4], [3, 3]]:
            tokens = [t[0] for t in sample(language, options, prompt, 20, seed)]
            drawn.add(tuple(tokens))
            counts += np.bincount(tokens, minlength=V)
    assert len(drawn) == 120
    assert_fits(counts, np.full(V, 1 / V))


def test_a_seed_reproduces_whatever_the_batch():
    language = Language.random(2, V, eos_bias=2.0)
    options = GenerationOptions(do_sample=True, num_return_sequences=3, seed=11, max_new_tokens=10, top_p=0.95)
    prompts = [[3], [5, 6], [7, 8, 9]]
    together = language.generate(options, prompts)
    assert together == language.generate(options, prompts)
    assert together[::-1] == language.generate(options, prompts[::-1])
    assert together == [language.generate(options, [prompt])[0] for prompt in prompts]
    lengths = {len(g.token_ids) for item in together for g in item}
    assert len(lengths) > 1, "samples that end together do not show that rows may leave"


def test_more_samples_begin_with_the_same_ones():
    language = Language.random(2, V)
    assert sample(language, {}, [3], 2, 0) == sample(language, {}, [3], 5, 0)[:2]


def test_no_seed_is_a_random_one():
    language = Language.random(2, V, eos_bias=-50.0)
    assert sample(language, {}, [3], 1, None) != sample(language, {}, [3], 1, None)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-30}])
def test_nothing_left_to_chance_is_greedy(options):
    language = Language.random(7, V)
    (greedy,) = language.generate(GenerationOptions(max_new_tokens=8), [[3]])
    assert sample(language, options | {"max_new_tokens": 8}, [3], 3, 0) == [greedy[0].token_ids] * 3


def test_equal_tokens_at_the_edge_of_top_k_are_all_kept():
    """Ties at the edge of top-k are all kept, as in transformers."""
    table = np.zeros((1, V), np.float32)
    table[0, 10:15] = 3
    tokens = sample(Language(table), {"top_k": 2, "max_new_tokens": 1}, [3], 300, 0)
    assert {t[0] for t in tokens} == {10, 11, 12, 13, 14}


def test_log_probabilities_are_those_of_the_model():
    language = Language.random(3, V)
    options = GenerationOptions(do_sample=True, temperature=3.0, top_k=10, seed=0, max_new_tokens=6)
    ((g,),) = language.generate(options, [[3]])
    assert g.score == pytest.approx(language.score([3], g.token_ids), abs=1e-5)


def test_rules_hold_for_samples():
    language = Language.random(3, V, eos_bias=3.0)
    options = {"min_new_tokens": 5, "suppress_tokens": list(range(10, V)), "no_repeat_ngram_size": 1}
    for tokens in sample(language, options | {"max_new_tokens": 8}, [3], 20, 0):
        assert EOS not in tokens[:5]
        assert max(tokens) < 10
        assert len(set(tokens)) == len(tokens)
