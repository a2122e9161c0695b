"""The search on a GIT model against transformers' ``generate`` on the same model."""

from __future__ import annotations

import pytest
import torch
import transformers

from gitfast.engines.search import generate_with
from gitfast.types import GenerationOptions

from support.tiers import slow

V, EOS = 300, 102
PROMPTS = [[101], [101, 7, 8, 9]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.GitConfig(
        vision_config=vision,
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    model = transformers.GitForCausalLM(config).eval()
    for parameter in model.parameters():  # far from the flat distribution of a fresh model
        parameter.data += 0.15 * torch.randn_like(parameter)
    model.output.bias.data[EOS] += 1.5
    return model


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


CASES = {
    "greedy": {},
    "greedy_rules": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "beams_2": {"num_beams": 2},
    "beams_3_short": {"num_beams": 3, "length_penalty": -0.5, "num_return_sequences": 2},
    "beams_4_early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
    "beams_5_never": {"num_beams": 5, "early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 3},
    "beams_rules": {"num_beams": 4, "bad_words_ids": [[5], [7, 8]], "no_repeat_ngram_size": 3, "min_new_tokens": 3},
    "beams_forced_end": {"num_beams": 3, "forced_eos_token_id": EOS},
}


FAST = ("greedy_rules", "beams_3_short", "beams_forced_end")


@pytest.mark.parametrize("prompt", PROMPTS, ids=["caption", "question"])
@pytest.mark.parametrize("case", [case if case in FAST else slow(case) for case in CASES])
@torch.inference_mode()
def test_equals_transformers(model, pixel_values, prompt, case):
    kwargs = {"max_new_tokens": 12} | CASES[case]
    rows: list[list[int]] = []

    def step(ids, parents, items):
        nonlocal rows
        rows = list(ids) if parents is None else [rows[p] + i for p, i in zip(parents, ids, strict=True)]
        pixels = pixel_values.expand(len(rows), -1, -1, -1)
        return model(input_ids=torch.tensor(rows), pixel_values=pixels).logits[:, -1]

    output = model.generate(
        input_ids=torch.tensor([prompt]),
        pixel_values=pixel_values,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **kwargs,
    )
    expected = [row[len(prompt) :] for row in output.sequences.tolist()]
    expected = [row[: row.index(EOS) + 1] if EOS in row else row for row in expected]
    (found,) = generate_with(step, [prompt], GenerationOptions(**kwargs), vocab_size=V, eos_token_id=EOS)
    assert [g.token_ids for g in found] == expected
    if "num_beams" in kwargs:
        assert [g.score for g in found] == pytest.approx(output.sequences_scores.tolist(), rel=1e-6, abs=1e-5)
