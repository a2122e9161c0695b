"""Shapes and attributes as transformers' own tests of GIT expect them, at the geometry of git-base."""

from __future__ import annotations

from typing import Any

import pytest
import torch

NARROW = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def config(kit: Any) -> Any:
    """224 pixels, patches of 16, the whole vocabulary; narrow and shallow."""
    vision = kit.GitVisionConfig(**NARROW, num_hidden_layers=3)
    return kit.GitConfig(**NARROW, num_hidden_layers=2, vision_config=vision)


def pixels(batch: int, size: int = 224) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(5, 30_522, (batch, length), generator=torch.Generator().manual_seed(0))


def test_vision_model(kit: Any, config: Any) -> None:
    model = kit.GitVisionModel(config.vision_config).eval()
    output = model(pixels(2), output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 14 * 14 + 1, 32)
    assert len(output.hidden_states) == 3 + 1


def test_model_with_and_without_image(kit: Any, config: Any) -> None:
    model = kit.GitModel(config).eval()
    assert model(ids(2, 7), pixel_values=pixels(2)).last_hidden_state.shape == (2, 197 + 7, 32)
    assert model(ids(2, 7)).last_hidden_state.shape == (2, 7, 32)


def test_logits_of_hello_world(kit: Any, config: Any) -> None:
    output = kit.GitForCausalLM(config).eval()(ids(1, 4), pixel_values=pixels(1))
    assert output.logits.shape == (1, 201, 30_522)


def test_interpolated_positions_of_180_pixels(kit: Any, config: Any) -> None:
    model = kit.GitModel(config).eval()
    output = model(ids(1, 9), pixel_values=pixels(1, 180), interpolate_pos_encoding=True)
    assert output.last_hidden_state.shape == (1, 11 * 11 + 1 + 9, 32)


def test_a_caption_begins_with_cls_and_has_20_new_tokens(kit: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = kit.GitForCausalLM(config).eval()
    with torch.no_grad():
        model.output.bias[config.eos_token_id] -= 100
    for beams in (1, 2):
        tokens = model.generate(pixel_values=pixels(2), num_beams=beams)
        assert tokens.shape == (2, 1 + 20)
        assert (tokens[:, 0] == 101).all()


def test_prompts_of_a_batch_keep_their_order(kit: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = kit.GitForCausalLM(config).eval()
    prompts = ids(3, 3)
    tokens = model.generate(prompts, pixel_values=pixels(3), max_new_tokens=2)
    assert torch.equal(tokens[:, :3], prompts)


def test_embeddings_and_head_are_had(kit: Any, config: Any) -> None:
    model = kit.GitForCausalLM(config)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    assert model.get_output_embeddings().out_features == config.vocab_size
    assert kit.GitModel(config).get_input_embeddings().num_embeddings == config.vocab_size
    assert model.num_parameters() == sum(x.numel() for x in model.state_dict().values())


def test_training_lowers_the_loss(kit: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = kit.GitForCausalLM(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = {"input_ids": ids(2, 6), "pixel_values": pixels(2), "labels": ids(2, 6)}
    losses = []
    for _ in range(5):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
