"""Configurations: those people have are read, those that cannot be are refused by name."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gitfast.checkpoints.config import GitConfig, GitVisionConfig, read_json
from gitfast.errors import CheckpointError, ConfigError, GitfastError

# As published for microsoft/git-large-vqav2 and git-base-vatex: only what differs from git-base is said.
LARGE_VQA = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 420,
        "patch_size": 14,
    }
}


def test_no_values_mean_git_base():
    config = GitConfig.from_dict({})
    assert config == GitConfig()
    assert (config.head_dim, config.vision_config.head_dim, config.num_image_tokens) == (64, 64, 197)
    assert not config.is_video


def test_partial_configs():
    large = GitConfig.from_dict(LARGE_VQA)
    assert large.vision_config.num_tokens == large.num_image_tokens == 901
    assert large.hidden_size == 768
    video = GitConfig.from_dict({"num_image_with_embedding": 6})
    assert video.is_video
    assert video.num_image_tokens == 1182


def test_legacy_keys_are_ignored():
    values = {
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "classifier_dropout": None,
        "transformers_version": "4.26.0.dev0",
        "vision_config": {
            "dropout": 0.0,
            "projection_dim": 512,
            "initializer_factor": 1.0,
            "top_k": 50,
            "hidden_size": 96,
        },
    }
    assert GitConfig.from_dict(values) == GitConfig(vision_config=GitVisionConfig(hidden_size=96))


@pytest.mark.parametrize("vision", [{}, None])
def test_an_empty_vision_config_is_the_default(vision):
    assert GitConfig.from_dict({"vision_config": vision}) == GitConfig()


def test_reads_what_transformers_writes(tmp_path):
    theirs = transformers.GitConfig(
        hidden_size=128, num_attention_heads=2, vocab_size=1000, num_image_with_embedding=6, **LARGE_VQA
    )
    theirs.save_pretrained(tmp_path)
    ours = GitConfig.from_file(tmp_path / "config.json")
    for f in dataclasses.fields(ours):
        if f.name not in ("vision_config", "other_eos_token_ids"):
            assert getattr(ours, f.name) == getattr(theirs, f.name), f.name
    for f in dataclasses.fields(ours.vision_config):
        assert getattr(ours.vision_config, f.name) == getattr(theirs.vision_config, f.name), f.name


def test_transformers_reads_what_we_write(tmp_path):
    ours = GitConfig.from_dict({**LARGE_VQA, "vocab_size": 1000, "layer_norm_eps": 1e-9})
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.GitConfig)
    assert GitConfig.from_dict(theirs.to_dict()) == ours
    assert GitConfig.from_file(tmp_path / "config.json") == ours


def test_several_tokens_may_end_a_text():
    config = GitConfig.from_dict({"eos_token_id": [102, 1012], "pad_token_id": None, "bos_token_id": None})
    assert (config.eos_token_id, config.eos_token_ids) == (102, (102, 1012))
    assert config.pad_token_id is config.bos_token_id is None
    assert config.to_dict()["eos_token_id"] == [102, 1012]
    assert GitConfig.from_dict(config.to_dict()) == config
    assert GitConfig.from_dict({"eos_token_id": [7]}).to_dict()["eos_token_id"] == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": -768}, r"config.hidden_size: expected an integer from 1 to 8192, got -768"),
        ({"hidden_size": 768.0}, "config.hidden_size"),
        ({"hidden_size": "768"}, "config.hidden_size"),
        ({"hidden_size": True}, "config.hidden_size"),
        ({"hidden_size": None}, "config.hidden_size"),
        ({"hidden_size": 2**63}, "config.hidden_size"),
        ({"num_attention_heads": 0}, "config.num_attention_heads"),
        ({"num_attention_heads": 11}, "config.hidden_size: 768 is not divisible by num_attention_heads 11"),
        ({"num_hidden_layers": 10**6}, "config.num_hidden_layers"),
        ({"num_image_with_embedding": 0}, "config.num_image_with_embedding"),
        ({"layer_norm_eps": 0}, "config.layer_norm_eps: expected a number between 0 and 1, got 0"),
        ({"layer_norm_eps": math.nan}, "config.layer_norm_eps"),
        ({"layer_norm_eps": math.inf}, "config.layer_norm_eps"),
        ({"layer_norm_eps": "1e-5"}, "config.layer_norm_eps"),
        ({"hidden_act": "relu"}, "config.hidden_act: expected 'gelu', got 'relu'"),
        ({"hidden_act": ["gelu"]}, "config.hidden_act"),
        ({"tie_word_embeddings": 1}, "config.tie_word_embeddings"),
        ({"eos_token_id": 30522}, "config.eos_token_id: 30522 is outside the vocabulary of 30522"),
        ({"eos_token_id": []}, "config.eos_token_id: expected a token id >= 0, got .]"),
        ({"eos_token_id": None}, "config.eos_token_id: expected a token id >= 0, got None"),
        ({"eos_token_id": [102, -1]}, "config.eos_token_id: expected at most 64 token ids"),
        ({"eos_token_id": [102, [5]]}, "config.eos_token_id: expected at most 64 token ids"),
        ({"eos_token_id": [102, 30522]}, "config.eos_token_id: 30522 is outside the vocabulary of 30522"),
        ({"eos_token_id": list(range(65))}, "config.eos_token_id: expected at most 64 token ids"),
        ({"pad_token_id": -1}, "config.pad_token_id"),
        ({"model_type": "blip"}, "config.model_type: expected 'git', got 'blip'"),
        ({"vision_config": []}, "config.vision_config: expected a JSON object, got list"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act"),
        ({"vision_config": {"num_channels": 1}}, "vision_config.num_channels: expected 3, got 1"),
        ({"vision_config": {"patch_size": 225}}, "vision_config.patch_size: 225 is larger than image_size 224"),
        ({"vision_config": {"image_size": 1024, "patch_size": 1}}, "1048577 image tokens; at most 65536"),
        ({"num_image_with_embedding": 64, "vision_config": {"patch_size": 4}}, "200768 image tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        GitConfig.from_dict(values)


@pytest.mark.parametrize("values", [None, [], "config", 3])
def test_only_an_object_is_a_config(values):
    with pytest.raises(ConfigError, match="expected a JSON object"):
        GitConfig.from_dict(values)


def test_the_vision_config_is_one():
    with pytest.raises(ConfigError, match=r"config\.vision_config: expected a GitVisionConfig"):
        GitConfig(vision_config={"hidden_size": 768})


def test_a_long_value_does_not_fill_the_message():
    with pytest.raises(ConfigError) as info:
        GitConfig.from_dict({"hidden_size": "7" * 100_000})
    assert len(str(info.value)) < 200


text = st.text("agelu_0\x00\u00e9", max_size=9)
json_values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.lists(text, max_size=2))
fields = st.sampled_from([f.name for f in dataclasses.fields(GitConfig)] + ["model_type"])
vision_fields = st.sampled_from([f.name for f in dataclasses.fields(GitVisionConfig)])
sizes = st.integers(-1, 70_000)


@given(
    st.dictionaries(fields, sizes | json_values, max_size=4),
    st.dictionaries(vision_fields, sizes | json_values, max_size=4) | st.none(),
)
def test_a_config_is_sane_or_refused(values, vision):
    if vision is not None:
        values["vision_config"] = vision
    try:
        config = GitConfig.from_dict(values)
    except ConfigError:
        return
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert 2 <= config.num_image_tokens <= 65_536
    assert 0 <= config.eos_token_id < config.vocab_size
    assert 0 < config.layer_norm_eps < 1
    assert GitConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": -1}')
    with pytest.raises(ConfigError, match=r"config\.json: config\.hidden_size"):
        GitConfig.from_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "JSON that is nested too deeply"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"a": "' + b" " * (1 << 20) + b'"}', "at most 1048576 bytes"),
    ],
)
def test_read_json_refuses(tmp_path, content, message):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"some\.json: .*{message}"):
        read_json(path, CheckpointError)


@pytest.mark.parametrize("name", ["absent.json", ".", "nul\0.json"])
def test_read_json_of_what_is_no_file(tmp_path, name):
    with pytest.raises(GitfastError, match=r"json|directory"):
        read_json(tmp_path / name)
