"""The search under the PyTorch reference engine: beams and samples against transformers and the engine's own scores."""

from __future__ import annotations

import pytest
import torch
import transformers

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.reference import ReferenceEngine
from gitfast.torch_model import GitModel, load_weights
from gitfast.types import GenerationOptions

EOS = 3
CONFIG = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 2,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = transformers.GitForCausalLM(transformers.GitConfig(**CONFIG)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the default, so that every term matters
            parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def engine(theirs):
    model = GitModel(GitConfig.from_dict(CONFIG)).double()
    load_weights(model, theirs.state_dict())
    return ReferenceEngine(model)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 4, "early_stopping": True, "length_penalty": 0.5},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.5, "suppress_tokens": [7, 8], "min_new_tokens": 5},
    ],
)
def test_equals_transformers(engine, theirs, pixels, options):
    options = {"max_new_tokens": 9} | options
    prompts = [[2, 9, 10], [2, 11, 12]]
    output = theirs.generate(
        input_ids=torch.tensor(prompts),
        pixel_values=pixels,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    expected = [row[3:] for row in output.sequences.tolist()]
    expected = [row[: row.index(EOS) + 1] if EOS in row else row for row in expected]
    found = engine.generate(engine.encode(pixels.numpy()), prompts, GenerationOptions(**options))
    assert [g.token_ids for item in found for g in item] == expected
    if "num_beams" in options:
        scores = [g.score for item in found for g in item]
        assert scores == pytest.approx(output.sequences_scores.tolist(), rel=1e-5, abs=1e-5)


def test_samples_are_reproducible_and_scored(engine, pixels):
    prefixes, prompts = engine.encode(pixels.numpy()), [[2], [2, 9]]
    options = GenerationOptions(do_sample=True, num_return_sequences=3, seed=5, max_new_tokens=6)
    found = engine.generate(prefixes, prompts, options)
    assert found == engine.generate(prefixes, prompts, options)
    assert found[1:] == engine.generate(prefixes[1:], prompts[1:], options)
    assert len({tuple(g.token_ids) for g in found[0]}) > 1
    for prefix, prompt, item in zip(prefixes, prompts, found, strict=True):
        for g in item:
            (scores,) = engine.score([prefix], [prompt + g.token_ids])
            assert g.token_logprobs == pytest.approx(scores[len(prompt) - 1 :].tolist(), abs=1e-5)


def test_wrong_option_is_named(engine):
    with pytest.raises(ValueError, match="temperature: expected a float32 number above 0, got 0"):
        engine.generate([None], [[2]], GenerationOptions(do_sample=True, temperature=0.0))
