"""Settings of ``generate`` in transformers' order: arguments, generation_config, the model's file, defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gitfast.types import GenerationOptions

from support.tiers import slow
from support.tiny_checkpoint import write_checkpoint


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, 32, 32)).astype(np.float32))


def checkpoint(folder: Path, saved: dict[str, Any] | None, **config: Any) -> Path:
    write_checkpoint(folder)
    if saved is not None:
        (folder / "generation_config.json").write_text(json.dumps(saved))
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


IDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
SAVED = {
    "none": (None, {}),
    "beams": ({**IDS, "num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 9}, {}),
    "lengths": ({**IDS, "min_new_tokens": 6, "max_new_tokens": 12}, {}),
    "max_length": ({**IDS, "max_length": 7}, {}),
    "rules": ({**IDS, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "suppress_tokens": [9]}, {}),
    "list of one": ({**IDS, "eos_token_id": [3]}, {}),
    "ids stand only there": (IDS, {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}),
    "stale ids in config.json": (IDS, {"eos_token_id": 30, "bos_token_id": 29}),
    "list in config.json": (None, {"eos_token_id": [3]}),
    "no padding token": ({"bos_token_id": 2, "eos_token_id": 3}, {"pad_token_id": None}),
}
FAST = ("none", "beams", "rules", "stale ids in config.json", "list in config.json")


@pytest.mark.parametrize("case", [case if case in FAST else slow(case) for case in SAVED])
def test_saved_settings_are_read_as_in_transformers(kit: Any, tmp_path: Path, case: str) -> None:
    saved, config = SAVED[case]
    folder = checkpoint(tmp_path, saved, **config)
    model = kit.GitForCausalLM.from_pretrained(folder)
    theirs = transformers.GitForCausalLM.from_pretrained(folder)
    inputs = {"input_ids": torch.tensor([[2, 5], [2, 8]]), "pixel_values": pixels(2)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    ours = model.generate(**inputs, return_dict_in_generate=True)
    assert ours.engine == "cpu"
    expected = theirs.generate(**inputs)
    if case == "beams":  # transformers fills finished beams with the end-of-sequence token
        expected[(expected == 3).cumsum(-1) - (expected == 3).int() > 0] = 0
    assert torch.equal(ours.sequences, expected)
    model.save_pretrained(tmp_path / "again")
    again = kit.GitForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.generate(**inputs), ours.sequences)


@pytest.mark.parametrize("beams", [slow(1), 3])
def test_several_ends(kit: Any, tmp_path: Path, beams: int) -> None:
    folder = checkpoint(tmp_path, {**IDS, "eos_token_id": [3, 9, 12]})
    model = kit.GitForCausalLM.from_pretrained(folder)
    theirs = transformers.GitForCausalLM.from_pretrained(folder)
    for options in ({}, {"eos_token_id": [12, 5]}, {"eos_token_id": 9}):
        ours = model.generate(pixel_values=pixels(3), num_beams=beams, return_dict_in_generate=True, **options)
        assert ours.engine == "cpu"
        expected = theirs.generate(pixel_values=pixels(3), num_beams=beams, **options)
        ends = torch.isin(expected, torch.tensor(options.get("eos_token_id", [3, 9, 12])))
        expected[ends.cumsum(-1) - ends.int() > 0] = 0  # transformers fills beams with an end
        assert torch.equal(ours.sequences, expected)


def test_arguments_stand_above_a_config_above_the_file(kit: Any, tmp_path: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, {**IDS, "min_new_tokens": 6, "max_new_tokens": 6}))
    config = kit.GenerationConfig(min_new_tokens=4, max_new_tokens=4)
    assert model.generate(pixel_values=pixels(1)).shape == (1, 7)
    assert model.generate(pixel_values=pixels(1), generation_config=config).shape == (1, 5)
    assert model.generate(pixel_values=pixels(1), min_new_tokens=2, max_new_tokens=2).shape == (1, 3)
    model.generation_config.max_new_tokens = model.generation_config.min_new_tokens = 3
    assert model.generate(pixel_values=pixels(1)).shape == (1, 4)


def test_samples_are_of_the_50_best(kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    seen: list[GenerationOptions] = []
    from gitfast.engines.cpu import CpuDecoding, CpuEngine

    run, add = CpuEngine.generate, CpuDecoding.add
    monkeypatch.setattr(CpuEngine, "generate", lambda self, p, q, o, *a: seen.append(o) or run(self, p, q, o, *a))
    monkeypatch.setattr(CpuDecoding, "add", lambda self, p, q, o: seen.append(o) or add(self, p, q, o))
    model.generate(pixel_values=pixels(1), do_sample=True)
    model.generate(pixel_values=pixels(1), do_sample=True, top_k=5)
    model.generate(pixel_values=pixels(1), top_k=5)  # greedy: nothing is drawn
    assert [options.top_k for options in seen] == [50, 5, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_lengths_count_padded_prompts(kit: Any, tmp_path: Path, side: str) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    rows = [[0, 0, 2, 5], [2, 8, 11, 5]] if side == "left" else [[2, 5, 0, 0], [2, 8, 11, 5]]
    ids = torch.tensor(rows)
    tokens = model.generate(ids, attention_mask=(ids != 0).long(), pixel_values=pixels(2), max_length=9, min_length=9)
    assert tokens.shape == (2, 9)
    if side == "left":
        theirs = transformers.GitForCausalLM.from_pretrained(tmp_path)
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels(2)}
        assert torch.equal(tokens, theirs.generate(**inputs, max_length=9, min_length=9))


MORE = [
    {"cache_implementation": "dynamic", "max_new_tokens": 6},
    {"forced_eos_token_id": [3], "max_new_tokens": 4},
    {"min_new_tokens": 30, "max_new_tokens": 5},
    {"min_length": 30, "max_length": 6},
    {"max_new_tokens": 100},  # more than there are positions, and every text ends before
    {"eos_token_id": [3, -1], "max_new_tokens": 12},
    {"max_new_tokens": torch.tensor(4)},
]


@pytest.mark.filterwarnings("ignore:min_")
@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("options", MORE, ids=str)
def test_values_that_transformers_bears(kit: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    theirs = transformers.GitForCausalLM.from_pretrained(tmp_path)
    ours = model.generate(pixel_values=pixels(2), return_dict_in_generate=True, **options)
    assert ours.engine == "cpu"
    assert torch.equal(ours.sequences, theirs.generate(pixel_values=pixels(2), **options))


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_texts_longer_than_the_positions(kit: Any, tmp_path: Path, engine: str) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    positions = model.config.max_position_embeddings
    options = {"pixel_values": pixels(1), "eos_token_id": 30, "engine": engine}
    assert model.generate(max_new_tokens=positions, **options).shape == (1, 1 + positions)
    if engine == "cpu" or kit.name == "plain":
        with pytest.raises(ValueError, match=f"max_new_tokens: {positions + 1} .* expected at most {positions}"):
            model.generate(max_new_tokens=positions + 1, **options)


@pytest.mark.parametrize("name", ["max_new_tokens", "max_length", "num_beams", "min_length"])
def test_huge_numbers_are_not_printed(kit: Any, tmp_path: Path, name: str) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    with pytest.raises(ValueError, match=f"^{name}: expected less than") as error:
        model.generate(pixel_values=pixels(1), **{name: 10**400})
    assert len(str(error.value)) < 100


def test_samples_of_a_batch_are_one_batch(kit: Any, tmp_path: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 10, "min_new_tokens": 10}
    model.generate(pixel_values=pixels(4), **options)
    engine = model._native[0]
    before = engine.stats.decode_steps
    torch.manual_seed(5)
    together = model.generate(pixel_values=pixels(4), **options)
    assert engine.stats.decode_steps - before <= 10
    torch.manual_seed(5)
    alone = [model.generate(pixel_values=x[None], **options)[0] for x in pixels(4)]
    assert torch.equal(together, torch.stack(alone))


UNUSUAL = [
    {"num_beams": 2, "do_sample": True},
    {"output_scores": True, "return_dict_in_generate": True},
    {"typical_p": 0.5, "do_sample": True},
    {"stopping_criteria": transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(3)])},
]


@pytest.mark.parametrize("options", UNUSUAL, ids=["sampled beams", "scores", "typical", "criteria"])
def test_what_only_transformers_searches(kit: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    model = kit.GitForCausalLM.from_pretrained(checkpoint(tmp_path, None))
    if kit.name == "plain":
        with pytest.raises(ValueError, match="needs transformers installed"):
            model.generate(pixel_values=pixels(1), **options)
        return
    theirs = transformers.GitForCausalLM.from_pretrained(tmp_path)
    torch.manual_seed(0)
    ours = model.generate(pixel_values=pixels(1), **options)
    torch.manual_seed(0)
    expected = theirs.generate(pixel_values=pixels(1), **options)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, expected)
    else:
        assert torch.equal(ours.sequences, expected.sequences)
        assert torch.equal(ours.scores[0], expected.scores[0])
