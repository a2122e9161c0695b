"""Greedy search, and the loop that runs any step function."""

from __future__ import annotations

import numpy as np
import pytest

from gitfast.engines.search import generate_with
from gitfast.types import GenerationOptions

from support.language import EOS, Language, transformers_generate
from support.tiers import examples


def chain(*pairs, vocab_size=6) -> np.ndarray:
    """Logits (V, V) that lead from one token to the next."""
    table = np.zeros((vocab_size, vocab_size), np.float32)
    for before, after in pairs:
        table[before, after] = 5.0
    return table


def follow(table):
    return lambda ids, parents, items: table[[row[-1] for row in ids]]


def run(table, prompts, on_token=None, **options):
    step = follow(table)
    return generate_with(
        step, prompts, GenerationOptions(**options), vocab_size=len(table), eos_token_id=EOS, on_token=on_token
    )


@pytest.mark.parametrize("eos_bias", [0.0, 2.0])
@pytest.mark.parametrize("length", [1, 4])
def test_equals_transformers(eos_bias, length):
    for seed in range(examples(20)):
        vocab_size = [12, 300][seed % 2]
        language = Language.random(seed, vocab_size, eos_bias=eos_bias)
        prompts = np.random.default_rng(seed).integers(3, vocab_size, (3, length)).tolist()
        expected = transformers_generate(language, prompts, do_sample=False, max_new_tokens=8)
        found = language.generate(GenerationOptions(max_new_tokens=8), prompts)
        assert [[g.token_ids for g in item] for item in found] == [other.token_ids for other in expected]
        for prompt, (g,) in zip(prompts, found, strict=True):
            assert g.score == pytest.approx(language.score(prompt, g.token_ids), abs=1e-5)
            assert g.score == pytest.approx(sum(g.token_logprobs), abs=1e-12)


def test_rows_end_one_by_one():
    """A row that ended takes no part in later steps, and the others go on as they would alone."""
    table = chain((0, 1), (1, EOS), (4, 4), (5, 0))
    rows = []

    def step(ids, parents, items):
        rows.append((ids, parents, items))
        return follow(table)(ids, parents, items)

    found = generate_with(step, [[0], [4], [3, 5]], GenerationOptions(max_new_tokens=4), vocab_size=6, eos_token_id=EOS)
    assert [g.token_ids for (g,) in found] == [[1, EOS], [4, 4, 4, 4], [0, 1, EOS]]
    assert [g.finish_reason for (g,) in found] == ["stop", "length", "stop"]
    assert rows == [
        ([[0], [4], [3, 5]], None, [0, 1, 2]),
        ([[1], [4], [0]], [0, 1, 2], [0, 1, 2]),
        ([[4], [1]], [1, 2], [1, 2]),
        ([[4]], [0], [1]),
    ]


def test_end_at_the_last_step_is_a_stop():
    ((g,),) = run(chain((0, 1), (1, EOS)), [[0]], max_new_tokens=2)
    assert (g.token_ids, g.finish_reason) == ([1, EOS], "stop")


def test_callback_sees_every_token_and_may_stop():
    table = chain((0, 1), (1, EOS), (4, 4))
    seen = []
    run(table, [[0], [4]], lambda item, tokens: seen.append((item, tokens)), max_new_tokens=3)
    assert seen == [(0, [1]), (1, [4]), (0, [EOS]), (1, [4]), (1, [4])]

    calls = []

    def stop_at_the_third(item, tokens):
        calls.append(item)
        return len(calls) != 3

    found = run(table, [[0], [4]], stop_at_the_third, max_new_tokens=9)
    assert calls == [0, 1, 0, *[1] * 8], "the row that was stopped, and had ended, is the first; the other goes on"
    assert [g.token_ids for (g,) in found] == [[1, EOS], [4] * 9]
    assert [g.finish_reason for (g,) in found] == ["stop", "length"]


@pytest.mark.parametrize("answer", [False, 0, np.False_])
def test_false_ends_a_row_and_none_does_not(answer):
    table = chain((0, 1), (1, 0), (4, 4))
    found = run(table, [[0], [4]], lambda item, _: answer if item == 0 else None, max_new_tokens=5)
    assert [g.token_ids for (g,) in found] == [[1], [4] * 5]
    assert [g.finish_reason for (g,) in found] == ["length", "length"]
    assert found[1:] == run(table, [[4]], max_new_tokens=5)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 3, "seed": 1}])
def test_beams_and_samples_report_progress_and_then_the_best(options):
    table = np.random.default_rng(0).standard_normal((6, 6), np.float32)
    told = []
    found = run(table, [[0], [4]], lambda *news: told.append(news), max_new_tokens=4, min_new_tokens=4, **options)
    for item in (0, 1):
        assert [tokens for i, tokens in told if i == item] == [[], [], [], found[item][0].token_ids]
    assert found == run(table, [[0], [4]], max_new_tokens=4, min_new_tokens=4, **options)


def test_no_prompts():
    assert run(chain(), []) == []
