"""The two-stage head: the tokens of the full head, whatever the first stage cannot tell apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gitfast import _C
from gitfast.engines.cpu import CpuEngine
from gitfast.types import GenerationOptions

from support.tiny_model import PROMPTS, make_model, random_pixels, weights_of


def engines(model, **arguments) -> tuple[CpuEngine, CpuEngine]:
    """Full head, and two stages."""
    full, quick = (
        CpuEngine.from_weights(model.config, weights_of(model), num_threads=2, two_stage_head=x, **arguments)
        for x in (False, True)
    )
    return full, quick


def generations(engine: CpuEngine, options: GenerationOptions) -> list:
    return engine.generate(engine.encode(random_pixels(4, 3, 32, 32)), PROMPTS, options)


def twins(model, spread: float):
    """Every token has neighbours whose scores differ by next to nothing, and large biases that cancel in the scores."""
    with torch.no_grad():
        weight, bias = model.output.weight, model.output.bias
        for j in range(0, len(weight) - 4, 4):
            for i in range(1, 4):
                weight[j + i] = weight[j] + spread * torch.randn_like(weight[j])
                bias[j + i] = bias[j] + spread * torch.randn(())
        bias += 50
    return model


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-7])
def test_tokens_are_those_of_the_full_head(isa, dtype, spread):
    full, quick = engines(twins(make_model(vocab_size=400), spread), isa=isa, dtype=dtype)
    options = GenerationOptions(max_new_tokens=30, min_new_tokens=30)
    for (want,), (got,) in zip(generations(full, options), generations(quick, options), strict=True):
        assert got.token_ids == want.token_ids
        np.testing.assert_allclose(got.token_logprobs, want.token_logprobs, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"suppress_tokens": list(range(3, 60))},
        {"begin_suppress_tokens": [7, 8, 9], "bad_words_ids": [[20], [21, 22]], "ban_last_token": True},
        {"min_new_tokens": 12},
        {"forced_bos_token_id": 9, "forced_eos_token_id": 3},
        {"num_beams": 3},
        {"do_sample": True, "seed": 5},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"allowed_token_ids": [[20, 21, 3], [30, 31, 3], [30, 32, 3]]},
        {"suppress_tokens": list(range(4, 200))},
    ],
    ids=str,
)
def test_under_every_rule(change):
    full, quick = engines(twins(make_model(vocab_size=400), 1e-4), dtype="bfloat16")
    options = GenerationOptions(**{"max_new_tokens": 15, **change})
    want, got = generations(full, options), generations(quick, options)
    assert [[g.token_ids for g in row] for row in got] == [[g.token_ids for g in row] for row in want]


def test_every_token_that_ends_may_be_ruled_out():
    """With six of them in front of all others, what decides is the seventh logit."""
    model = twins(make_model(vocab_size=400), 1e-3)
    ends = tuple(range(3, 9))
    with torch.no_grad():
        model.output.bias.zero_()
        model.output.bias[list(ends)] = 100
    config = dataclasses.replace(model.config, eos_token_id=ends[0], other_eos_token_ids=ends[1:])
    full, quick = (
        CpuEngine.from_weights(config, weights_of(model), num_threads=2, two_stage_head=x) for x in (False, True)
    )
    options = GenerationOptions(max_new_tokens=20, min_new_tokens=20)
    want, got = generations(full, options), generations(quick, options)
    assert [[g.token_ids for g in row] for row in got] == [[g.token_ids for g in row] for row in want]


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_that_round_hidden_states_in_their_own_ways(isa, dtype):
    """As bfloat16 the first half of the hidden state is smaller than it is, and the second half larger, by 2^-8."""
    model = make_model(vocab_size=400)
    half = model.config.hidden_size // 2
    below, above = slice(None, half), slice(half, None)
    with torch.no_grad():
        norm = model.git.encoder.layer[-1].output.LayerNorm
        norm.weight.zero_()
        norm.bias[below], norm.bias[above] = 1 + 0.99 * 2**-8, 1 + 1.01 * 2**-8
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.weight[10:14, below] = 1 + 2**-6
        model.output.weight[100, above] = 1 + 2**-7
    full, quick = engines(model, isa=isa, dtype=dtype)
    options = GenerationOptions(max_new_tokens=2, min_new_tokens=2)
    (want,), (got,) = generations(full, options)[0], generations(quick, options)[0]
    assert got.token_ids == want.token_ids


def test_a_batch_does_not_matter():
    _, quick = engines(make_model(vocab_size=400), dtype="bfloat16")
    options = GenerationOptions(max_new_tokens=12)
    prefixes = quick.encode(random_pixels(4, 3, 32, 32))
    together = quick.generate(prefixes, PROMPTS, options)
    assert together == [quick.generate([p], [ids], options)[0] for p, ids in zip(prefixes, PROMPTS, strict=True)]


def test_memory_it_takes():
    full, quick = engines(make_model(vocab_size=400), dtype="bfloat16")
    assert 0 < quick.nbytes - full.nbytes <= 416 * 64 + 2 * 4 * 400
    full, quick = engines(make_model(vocab_size=400), dtype="int8")
    assert quick.nbytes == full.nbytes
