"""The contract of every model of transformers, as its common tests state it, kept by both families of classes."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from gitfast.compat import hf

IDS = torch.tensor([[2, 5, 6, 7, 9], [2, 8, 11, 5, 3]])
LAYERS, HEADS, WIDTH, WORDS = 2, 2, 32, 31
IMAGE = 17  # tokens
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture
def pair(folder: Path) -> SimpleNamespace:
    """The classes on transformers, and its own."""
    return SimpleNamespace(
        ours=hf.GitForCausalLM.from_pretrained(folder), theirs=transformers.GitForCausalLM.from_pretrained(folder)
    )


def pixels(count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, 32, 32)).astype(np.float32))


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**{"input_ids": IDS, "pixel_values": pixels(), **inputs}).logits


def test_forward_begins_with_its_main_input(kit: Any) -> None:
    for kind, first in ((kit.GitVisionModel, "pixel_values"), (kit.GitModel, "input_ids")):
        assert list(inspect.signature(kind.forward).parameters)[1] == first
    known = {"input_ids", "attention_mask", "position_ids", "pixel_values", "inputs_embeds", "labels"}
    assert known < inspect.signature(kit.GitForCausalLM.forward).parameters.keys()  # Trainer looks for labels


def test_equal_calls_give_equal_outputs(model: Any) -> None:
    assert not model.training
    assert torch.equal(logits(model), logits(model))


def test_a_row_does_not_depend_on_its_batch(model: Any) -> None:
    alone = torch.cat([logits(model, input_ids=IDS[i : i + 1], pixel_values=pixels()[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(alone, logits(model))


def test_shapes_of_hidden_states_and_attentions(kit: Any, folder: Path) -> None:
    length = IMAGE + IDS.shape[1]
    for kind in (kit.GitModel, kit.GitForCausalLM):
        model = kind.from_pretrained(folder, **({"attn_implementation": "eager"} if kit.name != "plain" else {}))
        by_argument = model(IDS, pixel_values=pixels(), **EVERYTHING)
        model.config.output_hidden_states = model.config.output_attentions = True
        for output in (by_argument, model(IDS, pixel_values=pixels())):
            assert [x.shape for x in output.hidden_states] == [(2, length, WIDTH)] * (1 + LAYERS)
            assert [x.shape for x in output.attentions] == [(2, HEADS, length, length)] * LAYERS
            assert all(torch.allclose(x.sum(-1), torch.tensor(1.0)) for x in output.attentions)


def test_gradients_of_hidden_states_and_attentions(kit: Any, folder: Path) -> None:
    eager = {"attn_implementation": "eager"} if kit.name != "plain" else {}
    model = kit.GitForCausalLM.from_pretrained(folder, **eager)
    output = model(IDS, pixel_values=pixels(), **EVERYTHING)
    for x in (output.hidden_states[0], output.attentions[0]):
        x.retain_grad()
    output.logits[0, -1, 5].backward()
    assert output.hidden_states[0].grad.any()
    assert output.attentions[0].grad.any()


def test_tuples_hold_what_outputs_hold(model: Any) -> None:
    inputs = {"input_ids": IDS, "pixel_values": pixels(), "labels": IDS, **EVERYTHING}
    named, plain = model(**inputs), model(**inputs, return_dict=False)
    assert len(plain) == len(named)
    assert torch.equal(plain[0], named.loss)
    assert torch.equal(plain[1], named.logits)


def test_embeddings_stand_for_ids(model: Any) -> None:
    words = model.get_input_embeddings()(IDS)
    assert torch.equal(logits(model, input_ids=None, inputs_embeds=words), logits(model))


def test_embeddings_and_head_are_replaced(model: Any) -> None:
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    words, head = nn.Embedding(40, WIDTH), nn.Linear(WIDTH, 40)
    model.set_input_embeddings(words)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is words
    assert model.get_output_embeddings() is head
    assert logits(model, input_ids=torch.full((1, 2), 39), pixel_values=None).shape == (1, 2, 40)


@pytest.mark.parametrize("tied", [False, True])
def test_token_embeddings_are_resized(kit: Any, folder: Path, tied: bool) -> None:
    config = kit.GitConfig.from_pretrained(folder)
    config.tie_word_embeddings = tied
    model = kit.GitForCausalLM(config).eval()
    before, old = logits(model), model.get_input_embeddings().weight.clone()
    same = model.resize_token_embeddings()
    assert same.num_embeddings == WORDS
    for size, multiple, rows in ((WORDS + 10, None, WORDS + 10), (WORDS, None, WORDS), (WORDS - 9, 8, WORDS - 7)):
        model.resize_token_embeddings(size, pad_to_multiple_of=multiple, mean_resizing=False)
        words, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert words.weight.shape == head.weight.shape == (rows, WIDTH)
        assert (words.num_embeddings, head.out_features, model.config.vocab_size) == (rows, rows, rows)
        assert (words.weight is head.weight) is tied
        kept = min(rows, WORDS)
        assert torch.equal(words.weight[:kept], old[:kept])
        torch.testing.assert_close(logits(model)[..., :kept], before[..., :kept])
        assert model(IDS, labels=IDS).loss.isfinite()


def test_feed_forward_chunks_change_nothing(model: Any) -> None:
    before = logits(model)
    model.config.chunk_size_feed_forward = 1
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 1
    torch.testing.assert_close(logits(model), before)


def test_a_configuration_may_be_changed_and_copied(kit: Any, model: Any) -> None:
    model.config.use_cache = False
    assert model(IDS).past_key_values is None
    assert model(IDS, use_cache=True).past_key_values is not None
    twin = copy.deepcopy(model.config)
    twin.vision_config.image_size = 64
    assert model.config.vision_config.image_size == 32
    assert kit.GitConfig.from_dict(twin.to_dict()).vision_config.image_size == 64


def test_steps_with_a_cache_equal_one_pass(model: Any) -> None:
    whole = logits(model)[:, IMAGE:]
    first = model(IDS[:, :3], pixel_values=pixels(), use_cache=True)
    rest = model(IDS[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits[:, IMAGE:], rest.logits], dim=1), whole)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_generated_sequences_begin_with_their_prompts(model: Any, options: dict[str, Any]) -> None:
    rows = 2 * options.get("num_return_sequences", 1)
    for engine in ("cpu", "reference"):
        found = model.generate(IDS[:, :3], pixel_values=pixels(), max_new_tokens=4, engine=engine, **options)
        assert found.dtype == torch.int64
        assert found.shape[0] == rows
        assert 3 < found.shape[1] <= 7
        assert torch.equal(found[:, :3], IDS[:, :3].repeat_interleave(rows // 2, dim=0))


def test_left_padding_changes_no_text(model: Any) -> None:
    plain = model.generate(IDS[:, :3], pixel_values=pixels(), max_new_tokens=6)
    ids = torch.cat([torch.zeros(2, 4, dtype=torch.int64), IDS[:, :3]], dim=1)
    for engine in ("cpu", "reference"):
        mask = (ids != 0).long()
        padded = model.generate(ids, attention_mask=mask, pixel_values=pixels(), max_new_tokens=6, engine=engine)
        assert torch.equal(padded[:, 4:], plain)


# From here on: machinery that needs transformers.


def test_loading_tells_what_was_found(folder: Path, tmp_path: Path) -> None:
    found, info = hf.GitForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    found.git.save_pretrained(tmp_path)
    _, info = hf.GitForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"output.weight", "output.bias"}
    with pytest.raises((RuntimeError, ValueError), match="size"):
        hf.GitForCausalLM.from_pretrained(folder, vocab_size=40)
    wider = hf.GitForCausalLM.from_pretrained(folder, vocab_size=40, ignore_mismatched_sizes=True)
    assert wider.get_output_embeddings().out_features == 40


def test_shards_are_read_back(kit: Any, pair: SimpleNamespace, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(kit.GitForCausalLM.from_pretrained(tmp_path)), logits(pair.ours))


def test_attention_is_eager(pair: SimpleNamespace) -> None:
    for model in (pair.ours, pair.theirs):
        model.set_attn_implementation("eager")
        with pytest.raises(ValueError, match="does not support an attention implementation"):
            model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(pair.ours), logits(pair.theirs))


RETURNED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, **EVERYTHING}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "search", [{}, {"num_beams": 2}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}], ids=str
)
def test_everything_that_generate_returns(pair: SimpleNamespace, search: dict[str, Any], cached: bool) -> None:
    options = {"pixel_values": pixels(), "max_new_tokens": 3, "use_cache": cached, **RETURNED, **search}
    outputs = []
    for model in (pair.ours, pair.theirs):
        model.set_attn_implementation("eager")
        torch.manual_seed(0)
        outputs.append(model.generate(IDS[:, :3], **options))
    ours, theirs = outputs
    assert ours.keys() - theirs.keys() <= {"engine"}
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(mine, other)
    for name in ("attentions", "hidden_states"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert [x.shape for x in mine] == [x.shape for x in other]


def test_output_classes_of_generate(pair: SimpleNamespace) -> None:
    from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

    options = {"pixel_values": pixels(), "max_new_tokens": 3, "return_dict_in_generate": True}
    for extra in ({}, {"output_scores": True}):
        assert isinstance(pair.ours.generate(**options, **extra), GenerateDecoderOnlyOutput)
        beams = pair.ours.generate(**options, **extra, num_beams=2)
        assert isinstance(beams, GenerateBeamDecoderOnlyOutput)
        theirs = pair.theirs.generate(**options, output_scores=True, num_beams=2)
        torch.testing.assert_close(beams.sequences_scores, theirs.sequences_scores)


def test_generation_from_embeddings(pair: SimpleNamespace) -> None:
    words = pair.ours.get_input_embeddings()(IDS[:, :3])
    options = {"pixel_values": pixels(), "max_new_tokens": 4}
    plain = pair.ours.generate(IDS[:, :3], **options)
    assert torch.equal(pair.ours.generate(inputs_embeds=words, **options), plain[:, 3:])


def test_the_loss_counts_items_of_all_batches(pair: SimpleNamespace) -> None:
    for count in (None, torch.tensor(20)):
        ours, theirs = (
            model(IDS, pixel_values=pixels(), labels=IDS, num_items_in_batch=count).loss
            for model in (pair.ours, pair.theirs)
        )
        torch.testing.assert_close(ours, theirs)
