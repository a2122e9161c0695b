"""The CPU engine against transformers, float32, the same weights on both sides.

Values may be at most twice as far from the float64 truth as transformers' own float32 values are, in the root mean
square; tokens must be the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gitfast.checkpoints.published import SHAPES
from gitfast.types import GenerationOptions

from support.parity_cases import EOS, NEW_TOKENS, Case, published_case

OPTIONS = GenerationOptions(max_new_tokens=NEW_TOKENS, suppress_tokens=[EOS])


@pytest.fixture(scope="module", params=[*SHAPES, "git-base at full size"])
def case(request) -> Case:
    if request.param not in SHAPES:
        return Case({}, seed=0, std=0.02, attention_gain=3)
    return published_case(request.param, seed=list(SHAPES).index(request.param))


def assert_as_near(got, theirs: torch.Tensor, truth: torch.Tensor, what: str) -> None:
    """``got`` is at most twice as far from ``truth`` as ``theirs``.

    The worst value may be four times as far: over a few thousand values the extreme of the rounding errors of two
    equally good orders of summation differs by a factor of two.
    """
    truth = truth.double().numpy()
    error, their_error = got - truth, theirs.double().numpy() - truth
    mean, worst = (f(error) / f(their_error) for f in (lambda x: np.sqrt(np.square(x).mean()), lambda x: abs(x).max()))
    print(f"{what}: error {mean:.2f}, at the worst value {worst:.2f} of theirs")
    assert mean <= 2, what
    assert worst <= 4, what


def test_features(case):
    got = case.engine.features(case.pixels.numpy())
    assert_as_near(got, case.features(case.theirs), case.features(case.exact), "features")


def test_prefix_keys_and_values(case):
    for row, prefix in enumerate(case.prefixes):
        assert prefix.num_tokens == case.config.num_image_tokens
        truth, theirs = case.truth[row].past_key_values, case.theirs_in_one_pass[row].past_key_values
        for layer in range(case.config.num_hidden_layers):
            ours = prefix.keys_values(layer)
            for name, got in zip(("keys", "values"), ours, strict=True):
                a, b = (getattr(x.layers[layer], name)[0, :, : prefix.num_tokens] for x in (theirs, truth))
                assert_as_near(got, a, b, f"{name} of layer {layer}, row {row}")


def test_logits_of_every_step(case):
    got = case.engine.logits(case.prefixes, [case.sequence(row) for row in range(2)])
    for row, ours in enumerate(got):
        first = len(case.prompts[row]) - 1
        ours = ours[first : first + NEW_TOKENS]
        truth = case.truth[row].logits[0, case.config.num_image_tokens + first :][:NEW_TOKENS]
        theirs = torch.stack([step[row] for step in case.golden.logits])
        assert_as_near(ours, theirs, truth, f"logits, row {row}")


def test_greedy_tokens(case):
    golden = case.golden_tokens
    assert len(set(golden[0] + golden[1])) >= 20, "a model that repeats itself shows nothing"
    assert sum(a != b for a, b in zip(*golden, strict=True)) >= 5, "a model that is blind shows nothing"
    batch = [row[0] for row in case.engine.generate(case.prefixes, case.prompts, OPTIONS)]
    assert [g.token_ids for g in batch] == golden
    for row, whole in enumerate(batch):
        (alone,) = case.engine.generate(case.prefixes[row : row + 1], case.prompts[row : row + 1], OPTIONS)
        assert alone == [whole]  # bit for bit, log-probabilities too
        theirs = torch.log_softmax(torch.stack([step[row] for step in case.golden.logits]), dim=-1)
        expected = theirs.gather(-1, torch.tensor(golden[row])[:, None])[:, 0]
        np.testing.assert_allclose(whole.token_logprobs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("frames", [None, 1, 4])
def test_fewer_frames_on_a_video_model(frames):
    """One image, without temporal embedding, or fewer frames than the model has embeddings for."""
    case = published_case("git-base-vatex", seed=40)
    case.pixels = case.pixels[:, 0].contiguous() if frames is None else case.pixels[:, :frames].contiguous()
    case.prompts = [[101], [101]]  # without padding: transformers sizes its mask for all frames
    assert case.prefixes[0].num_tokens == 197 * (frames or 1)
    got = [row[0].token_ids for row in case.engine.generate(case.prefixes, case.prompts, OPTIONS)]
    assert got == case.golden_tokens
