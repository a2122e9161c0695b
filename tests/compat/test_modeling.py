"""The transformers-shaped classes against transformers itself: every output, the loss and every gradient."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gitfast.errors import CheckpointError

from support.tiny_checkpoint import write_checkpoint

torch.manual_seed(0)
IDS = torch.tensor([[2, 5, 6, 7, 9], [2, 8, 11, 5, 3]])


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("video"), num_image_with_embedding=3)


def pair(kit: Any, folder: Path) -> tuple[Any, Any]:
    """A model and transformers' own with the same weights; shared by the tests, which do not change them."""
    return _pair(kit.GitForCausalLM, folder)


@functools.cache
def _pair(kind: Any, folder: Path) -> tuple[Any, Any]:
    theirs = transformers.GitForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return kind.from_pretrained(folder), theirs


def pixels(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> None:
    """Differences in units of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max().clamp_min(1e-6)


def assert_same_outputs(ours: Any, theirs: Any) -> None:
    assert_close(ours.logits, theirs.logits)
    for name in ("hidden_states", "attentions"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert_close(mine, other)


def shapes_of(config: Any) -> dict[str, Any]:
    """A configuration without the keys that say where it was read and written."""
    names = ("dtype", "architectures", "transformers_version", "_name_or_path")
    return {name: value for name, value in config.to_dict().items() if name not in names}


EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


def test_image_and_text(kit: Any, folder: Path) -> None:
    model, theirs = pair(kit, folder)
    inputs = {"input_ids": IDS, "pixel_values": pixels(2, 3, 32, 32)}
    assert_same_outputs(model(**inputs, **EVERYTHING), theirs(**inputs, **EVERYTHING))


def test_one_image_many_texts(kit: Any, folder: Path) -> None:
    model, theirs = pair(kit, folder)
    inputs = {"input_ids": IDS, "pixel_values": pixels(1, 3, 32, 32)}
    assert_same_outputs(model(**inputs, **EVERYTHING), theirs(**inputs, **EVERYTHING))


def test_text_only(kit: Any, folder: Path) -> None:
    model, theirs = pair(kit, folder)
    assert_same_outputs(model(IDS, **EVERYTHING), theirs(input_ids=IDS, **EVERYTHING))


def test_video(kit: Any, video_folder: Path) -> None:
    model, theirs = pair(kit, video_folder)
    inputs = {"input_ids": IDS, "pixel_values": pixels(2, 3, 3, 32, 32)}
    assert_same_outputs(model(**inputs, **EVERYTHING), theirs(**inputs, **EVERYTHING))


PADDED = {
    "right": [[1, 1, 1, 0, 0], [1] * 5],
    "left": [[0, 0, 1, 1, 1], [1] * 5],
    "middle": [[1, 0, 1, 0, 1], [1] * 5],
}


@pytest.mark.parametrize("side", PADDED)
def test_positions_do_not_follow_the_mask(kit: Any, folder: Path, side: str) -> None:
    model, theirs = pair(kit, folder)
    mask = torch.tensor(PADDED[side])
    inputs = {"input_ids": IDS * mask, "attention_mask": mask, "pixel_values": pixels(2, 3, 32, 32)}
    ours, expected = (m(**inputs, labels=inputs["input_ids"]) for m in (model, theirs))
    assert_close(ours.logits, expected.logits)
    assert_close(ours.loss, expected.loss)


def test_left_padded_rows_with_their_positions_equal_single_rows(kit: Any, folder: Path) -> None:
    model, theirs = pair(kit, folder)
    ids, mask = torch.tensor([[0, 0, 2, 5, 6], [2, 8, 11, 5, 3]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels(2, 3, 32, 32), "position_ids": positions}
    ours = model(**inputs)
    assert_close(ours.logits, theirs(**inputs).logits)
    alone = model(torch.tensor([[2, 5, 6]]), pixel_values=inputs["pixel_values"][:1])
    assert_close(ours.logits[0, -3:], alone.logits[0, -3:])


def test_embeddings_in_place_of_ids(kit: Any, folder: Path) -> None:
    model, theirs = pair(kit, folder)
    embeds = model.get_input_embeddings()(IDS).detach()
    kept = embeds.clone()
    ours = model(inputs_embeds=embeds, pixel_values=pixels(2, 3, 32, 32))
    assert torch.equal(embeds, kept)  # transformers changes them in place
    assert_close(ours.logits, theirs(inputs_embeds=kept.clone(), pixel_values=pixels(2, 3, 32, 32)).logits)


def test_step_by_step_with_a_cache(kit: Any, folder: Path) -> None:
    model, _ = pair(kit, folder)
    whole = model(IDS, pixel_values=pixels(2, 3, 32, 32)).logits[:, 17:]
    output = model(IDS[:, :2], pixel_values=pixels(2, 3, 32, 32))
    steps = [output.logits[:, 17:]]
    for i in range(2, 5):
        output = model(IDS[:, i : i + 1], past_key_values=output.past_key_values)
        steps.append(output.logits)
    assert output.past_key_values.get_seq_length() == 17 + 5
    assert_close(torch.cat(steps, 1), whole)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (64, 64)])
def test_images_of_any_size(kit: Any, folder: Path, size: tuple[int, int]) -> None:
    model, theirs = pair(kit, folder)
    inputs = {"input_ids": IDS, "pixel_values": pixels(2, 3, *size), "interpolate_pos_encoding": True}
    assert_same_outputs(model(**inputs, **EVERYTHING), theirs(**inputs, **EVERYTHING))


def test_logits_to_keep(kit: Any, folder: Path) -> None:
    model, theirs = pair(kit, folder)
    inputs = {"input_ids": IDS, "pixel_values": pixels(2, 3, 32, 32), "logits_to_keep": 2}
    ours = model(**inputs)
    assert ours.logits.shape == (2, 2, 31)
    assert_close(ours.logits, theirs(**inputs).logits)


@pytest.mark.parametrize("frames", [None, 3])
def test_loss_and_every_gradient(kit: Any, folder: Path, video_folder: Path, frames: int | None) -> None:
    model, theirs = pair(kit, folder if frames is None else video_folder)
    model.zero_grad()
    theirs.zero_grad()
    x = pixels(2, 3, 32, 32) if frames is None else pixels(2, 3, 3, 32, 32)
    labels = IDS.clone()
    labels[:, :2] = -100
    ours = model(IDS, pixel_values=x, labels=labels)
    expected = theirs(input_ids=IDS, pixel_values=x, labels=labels)
    assert_close(ours.loss, expected.loss)
    ours.loss.backward()
    expected.loss.backward()
    gradients = dict(theirs.named_parameters())
    scale = max(p.grad.abs().max() for p in gradients.values() if p.grad is not None)
    for name, parameter in model.named_parameters():
        other = gradients[name].grad
        if other is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            difference = (parameter.grad - other).abs().max()
            assert difference <= 1e-5 * other.abs().max() + 1e-6 * scale, name


def test_git_model_and_vision_model(kit: Any, folder: Path) -> None:
    theirs = transformers.GitModel.from_pretrained(folder).eval()
    ours = kit.GitModel.from_pretrained(folder)
    names = {name for name in theirs.state_dict() if not name.endswith("position_ids")}
    assert ours.state_dict().keys() == names
    inputs = {"input_ids": IDS, "pixel_values": pixels(2, 3, 32, 32)}
    assert_close(ours(**inputs).last_hidden_state, theirs(**inputs).last_hidden_state)

    vision = kit.GitVisionModel.from_pretrained(folder)
    reference = pair(kit, folder)[1].git.image_encoder
    assert vision.state_dict().keys() == {n for n in reference.state_dict() if not n.endswith("position_ids")}
    output, expected = (model(inputs["pixel_values"], **EVERYTHING) for model in (vision, reference))
    assert_close(output.last_hidden_state, expected.last_hidden_state)
    for name in ("hidden_states", "attentions"):
        for mine, other in zip(output[name], expected[name], strict=True):
            assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_checkpoints_travel_both_ways(kit: Any, folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = transformers.GitForCausalLM.from_pretrained(folder, dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = kit.GitForCausalLM.from_pretrained(tmp_path / "theirs", dtype=dtype)
    ours.save_pretrained(tmp_path / "ours")
    ours.save_pretrained(tmp_path / "ours")  # again, over itself
    back = transformers.GitForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert back.dtype == dtype
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])
    config = kit.GitConfig.from_pretrained(tmp_path / "ours")
    assert shapes_of(config) == shapes_of(ours.config)
    config.save_pretrained(tmp_path / "config")
    assert kit.GitConfig.from_pretrained(tmp_path / "config") == config


@pytest.mark.parametrize("name", ["GitModel", "GitVisionModel"])
def test_parts_of_a_model_travel_both_ways(kit: Any, folder: Path, tmp_path: Path, name: str) -> None:
    ours, theirs = getattr(kit, name), getattr(transformers, name)
    part = ours.from_pretrained(folder)
    part.save_pretrained(tmp_path / "ours")
    again = ours.from_pretrained(tmp_path / "ours")
    assert shapes_of(again.config) == shapes_of(part.config)
    other = theirs.from_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    back = ours.from_pretrained(tmp_path / "theirs")
    for name, tensor in part.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(other.state_dict()[name], tensor)
        assert torch.equal(back.state_dict()[name], tensor)


def test_outputs_are_had_by_name_key_index_and_as_tuple(kit: Any, folder: Path) -> None:
    model, _ = pair(kit, folder)
    output = model(IDS, labels=IDS)
    assert list(output) == ["loss", "logits"]
    assert output[0] is output.loss is output["loss"]
    assert output[:2] == output.to_tuple()
    assert "hidden_states" not in output
    with pytest.raises(KeyError):
        output["hidden_states"]
    logits, cache = model(IDS, return_dict=False)
    assert logits.shape == (2, 5, 31)
    assert len(cache) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "input_ids, inputs_embeds: expected exactly one"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 5, 32)}, "input_ids, inputs_embeds: expected exactly one"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
            r"attention_mask: expected shape \(2, 5\), got \(2, 4\)",
        ),
        ({"input_ids": IDS, "pixel_values": torch.zeros(3, 3, 32, 32)}, "2 rows do not divide over 3 images"),
        ({"input_ids": IDS, "pixel_values": torch.zeros(2, 3, 32, 40)}, "pixel_values: expected images of"),
        ({"input_ids": IDS, "pixel_values": torch.zeros(2, 1, 3, 32, 32)}, "clips of at most 0 frames"),
        ({"input_ids": IDS, "labels": IDS[:, :4]}, r"labels: expected shape \(2, 5\), got \(2, 4\)"),
        ({"input_ids": IDS, "labels": torch.ones(2, 6).long()}, r"labels: expected shape \(2, 5\), got \(2, 6\)"),
        ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 2}, "logits_to_keep|labels"),
    ],
)
def test_bad_arguments_are_named(kit: Any, folder: Path, arguments: dict[str, Any], message: str) -> None:
    model, _ = pair(kit, folder)
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_an_image_cannot_join_a_cache(kit: Any, folder: Path) -> None:
    model, _ = pair(kit, folder)
    cache = model(IDS, pixel_values=pixels(2, 3, 32, 32)).past_key_values
    with pytest.raises(ValueError, match="pixel_values: expected none with past_key_values"):
        model(IDS[:, :1], pixel_values=pixels(2, 3, 32, 32), past_key_values=cache)


WRAPPED = {
    "module": lambda weights: {f"module.{name}": x for name, x in weights.items()},
    "compiled": lambda weights: {f"_orig_mod.{name}": x for name, x in weights.items()},
    "attribute": lambda weights: {f"model.{name}": x for name, x in weights.items()},
}
NESTED = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3},
    "all": lambda weights: {"model_state_dict": {f"module._orig_mod.{name}": x for name, x in weights.items()}},
}


@pytest.mark.parametrize("case", [*WRAPPED, *NESTED])
def test_files_of_training_scripts(kit: Any, folder: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    if case in WRAPPED:
        save_file(WRAPPED[case](weights), file)
    else:
        torch.save(NESTED[case](weights), file.with_name("pytorch_model.bin"))
    model = kit.GitForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(model.state_dict()[name], x) for name, x in weights.items())


def test_a_given_state_dict_is_saved(kit: Any, folder: Path, tmp_path: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder, attn_implementation="eager")
    weights = {name: 2 * x for name, x in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=weights, max_shard_size="1GB")
    again = kit.GitForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], x) for name, x in weights.items())


def test_unknown_models_and_dtypes(kit: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        kit.GitForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dtype.*int8"):
        kit.GitForCausalLM.from_pretrained(folder, dtype=torch.int8)
