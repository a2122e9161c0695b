"""generation_config.json: token ids and default options as transformers takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gitfast
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.checkpoints.generation import GenerationDefaults
from gitfast.errors import ConfigError, GitfastError

from support.tiny_checkpoint import random_image, write_checkpoint

IDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
LIMIT = 24
SEEDS = [0, 1]


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def save(folder: Path, **values: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def captions_of_transformers(folder: Path, seeds: list[int], **options: Any) -> list[list[int]]:
    """The new tokens of ``generate``, for one image at a time."""
    import torch
    from transformers import GitForCausalLM

    model = GitForCausalLM.from_pretrained(folder).eval()
    pixels = torch.from_numpy(gitfast.load(folder).processor.images([random_image(seed) for seed in seeds]))
    prompt = torch.tensor([[2]])
    with torch.no_grad():
        found = [model.generate(pixel_values=x[None], input_ids=prompt, **options)[0, 1:] for x in pixels]
    return [ids.tolist() for ids in found]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"eos_token_id": [3]},
        {"eos_token_id": [13, 3]},
        {"eos_token_id": [3, 25, 13, 7], "num_beams": 3},
        {"eos_token_id": [3, 13], "min_new_tokens": 12},
        {"pad_token_id": None},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"min_new_tokens": 14},
        {"min_length": 12},
        {"max_new_tokens": 4},
        {"max_length": 5},
        {"max_length": 9, "max_new_tokens": 3},
        {"suppress_tokens": [25], "begin_suppress_tokens": [13], "repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2, "bad_words_ids": [[13, 25], [3], [21]], "forced_eos_token_id": 3},
        {"forced_eos_token_id": [3], "max_new_tokens": 6},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_captions_are_those_of_transformers(folder: Path, values: dict[str, Any]) -> None:
    change_config(folder, eos_token_id=9)  # stale
    save(folder, **{**IDS, **values})
    limit = {} if {"max_length", "max_new_tokens"} & values.keys() else {"max_new_tokens": LIMIT}
    images = [random_image(seed) for seed in SEEDS]
    expected = captions_of_transformers(folder, SEEDS, **limit)
    for engine in ("cpu", "reference"):
        found = gitfast.load(folder, engine=engine).caption(images, **limit)
        assert [list(result.token_ids) for result in found] == expected


def test_each_of_several_tokens_ends_a_caption(folder: Path) -> None:
    plain = gitfast.load(folder).caption(random_image(1)).token_ids
    assert plain[-1] == 3
    assert 13 in plain[1:-1]
    change_config(folder, eos_token_id=[3, 13])
    for engine in ("cpu", "reference"):
        model = gitfast.load(folder, engine=engine)
        ended = model.caption(random_image(1))
        assert list(ended.token_ids) == list(plain[: plain.index(13) + 1])
        assert ended.finish_reason == "stop"
        assert "".join(model.stream(random_image(1))) == ended.text
    assert model.config.eos_token_ids == (3, 13)


def test_ids_of_config_json_fill_in(folder: Path) -> None:
    """transformers finds no end there, and runs to the limit."""
    save(folder, num_beams=2)
    assert open_checkpoint(folder).config.eos_token_id == 3
    change_config(folder, eos_token_id=None)
    with pytest.raises(ConfigError, match=r"config\.json: config\.eos_token_id: expected a token id >= 0, got None"):
        open_checkpoint(folder)
    save(folder, eos_token_id=3)
    assert open_checkpoint(folder).config.eos_token_id == 3


def test_options_of_config_json_count_without_the_file(folder: Path) -> None:
    change_config(folder, num_beams=3, max_length=20)
    assert gitfast.load(folder).generation_defaults == GenerationDefaults(options={"num_beams": 3}, bos_token_id=2)
    found = gitfast.load(folder).caption(random_image(1), max_new_tokens=LIMIT)
    assert [list(found.token_ids)] == captions_of_transformers(folder, [1], max_new_tokens=LIMIT)
    save(folder, **IDS)
    assert gitfast.load(folder).generation_defaults == GenerationDefaults(bos_token_id=2)


def test_arguments_win(folder: Path) -> None:
    plain = {n: gitfast.load(folder).caption(random_image(1), num_beams=n) for n in (1, 3)}
    assert plain[1].token_ids != plain[3].token_ids
    save(folder, **IDS, num_beams=3, num_return_sequences=2, min_new_tokens=9, max_new_tokens=500, do_sample=False)
    model = gitfast.load(folder)
    assert model.caption(random_image(1), num_beams=1, min_new_tokens=0).token_ids == plain[1].token_ids
    assert model.caption(random_image(1), num_return_sequences=1, min_new_tokens=0).token_ids == plain[3].token_ids
    assert len(model.caption(random_image(1), max_new_tokens=4).token_ids) == 4
    assert model.caption(random_image(1), do_sample=True, seed=3).token_ids
    assert model.caption(random_image(1), preset="paper", min_new_tokens=0).token_ids
    assert model.classify(random_image(1), ["red", "blue"])
    save(folder, **IDS, do_sample=True)
    model = gitfast.load(folder)
    assert model.generation_defaults.options == {"do_sample": True, "top_k": 50}
    assert model.caption(random_image(1), num_beams=3).token_ids == plain[3].token_ids
    assert model.caption(random_image(1), do_sample=False).token_ids == plain[1].token_ids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"typical_p": 0.5, "penalty_alpha": 0.6, "num_beam_groups": 1}, "ignored, .*: 'penalty_alpha', 'typical_p'$"),
        ({"sequence_bias": [[[5], 10.0]]}, "ignored, .*: 'sequence_bias'"),
        ({"stop_strings": ["a"], "max_time": 3.0}, "ignored, .*: 'max_time', 'stop_strings'"),
        (
            {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
            "ignored, .*: 'diversity_penalty', 'num_beam_groups'",
        ),
        ({"remove_invalid_values": True}, "ignored, .*: 'remove_invalid_values'"),
        ({"an_option_of_tomorrow": 3}, "ignored, .*: 'an_option_of_tomorrow'"),
        ({"num_return_sequences": 2}, "num_return_sequences has no effect"),
        ({"num_beams": 2, "do_sample": True}, "do_sample is ignored, because no engine samples beams"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_said(folder: Path, values: dict[str, Any], message: str) -> None:
    save(folder, **IDS, **values)
    with pytest.warns(UserWarning, match=rf"generation_config\.json: {message}") as said:
        model = gitfast.load(folder)
    assert len(said) == 1
    assert model.caption(random_image(1)).token_ids


def test_what_changes_no_text_is_left_out(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    values = {"transformers_version": "4.40.0", "use_cache": False, "cache_implementation": "static"}
    off = {"guidance_scale": 1.0, "penalty_alpha": 0.0, "typical_p": 1.0, "sequence_bias": None, "token_healing": False}
    outputs = {"return_dict_in_generate": True, "output_scores": True}
    save(folder, **IDS, **values, **off, **outputs, _from_model_config=True, num_assistant_tokens=20)
    assert gitfast.load(folder).generation_defaults == GenerationDefaults(bos_token_id=2)
    assert not recwarn


def test_captions_without_a_prompt_begin_with_bos(folder: Path) -> None:
    save(folder, **{**IDS, "bos_token_id": 9})
    model = gitfast.load(folder)
    import torch
    from transformers import GitForCausalLM

    theirs = GitForCausalLM.from_pretrained(folder)
    pixels = torch.from_numpy(model.processor.images([random_image(1)]))
    expected = theirs.generate(pixel_values=pixels, max_new_tokens=LIMIT)[0].tolist()
    assert expected[0] == 9
    assert list(model.caption(random_image(1), max_new_tokens=LIMIT).token_ids) == expected[1:]
    prompted = model.caption(random_image(1), prompt="a red").token_ids
    save(folder, **IDS)
    assert gitfast.load(folder).caption(random_image(1), prompt="a red").token_ids == prompted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": "4"}, "num_beams: expected an integer from 1 to 4096, got '4'"),
        ({"num_beams": 2.5}, "num_beams: expected an integer from 1 to 4096, got 2.5"),
        ({"num_beams": True}, "num_beams: .*got True"),
        ({"max_new_tokens": 10**400}, "max_new_tokens: .*got inf"),
        ({"temperature": 10**400}, "temperature: expected a number, got inf"),
        ({"temperature": float("nan")}, "temperature: expected a number, got nan"),
        ({"do_sample": 1}, "do_sample: expected true or false, got 1"),
        ({"early_stopping": "maybe"}, "early_stopping: .*got 'maybe'"),
        ({"suppress_tokens": 5}, "suppress_tokens: expected a list"),
        ({"bad_words_ids": [5]}, "bad_words_ids: expected a list"),
        ({"eos_token_id": "3"}, "eos_token_id: expected a token id, got '3'"),
        ({"eos_token_id": [3, None]}, "eos_token_id: expected a token id, got 'None'"),
        ({"eos_token_id": []}, "eos_token_id: expected a token id or a list of them, got an empty list"),
        ({"eos_token_id": 999}, "eos_token_id: 999 is outside the vocabulary of 31"),
        ({"bos_token_id": [2]}, "bos_token_id: expected a token id"),
        ({"pad_token_id": [[0]]}, "pad_token_id: expected a token id"),
        ({"pad_token_id": 31}, "pad_token_id: 31 is outside the vocabulary"),
        ({"forced_eos_token_id": [3, 4]}, "forced_eos_token_id: expected an integer"),
    ],
)
def test_values_that_cannot_be(folder: Path, values: dict[str, Any], message: str) -> None:
    save(folder, **{**IDS, **values})
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {message}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", "version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_files_are_named(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(GitfastError, match=r"generation_config\.json: "):
        open_checkpoint(folder)


def test_a_vocabulary_of_no_size_is_the_configuration_s_fault(folder: Path) -> None:
    save(folder, **IDS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": -1}))
    with pytest.raises(ConfigError, match=r"/config\.json: config\.vocab_size: expected an integer from 1"):
        open_checkpoint(folder)
