"""LoRA adapters: the merged model computes what the base model and the adapter compute side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import gitfast
from gitfast.checkpoints import hub
from gitfast.errors import CheckpointError

from support.tiny_checkpoint import random_image, write_checkpoint

QUERY = "git.encoder.layer.0.attention.self.query"
DENSE = "git.encoder.layer.1.output.dense"
VISION = "git.image_encoder.vision_model.encoder.layers.0.mlp.fc1"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base")


def write_adapter(
    base: Path, layers: dict[str, int], extra: dict[str, np.ndarray] | None = None, **settings: Any
) -> Path:
    """An adapter with random matrices: ``layers`` gives the rank of each."""
    folder = base.parent / "adapter"
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights, tensors = load_file(base / "model.safetensors"), dict(extra or {})
    for module, rank in layers.items():
        outputs, inputs = weights[f"{module}.weight"].shape
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, inputs)).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(outputs, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def expected_weight(adapter: Path, base: Path, module: str, scale: float) -> np.ndarray:
    tensors = load_file(adapter / "adapter_model.safetensors")
    down, up = (tensors[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    return load_file(base / "model.safetensors")[f"{module}.weight"] + scale * up @ down


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 8 / 4),
        ({"lora_alpha": 3}, 3 / 4),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"self.query": 20}}, 20 / 4),
        ({"alpha_pattern": {"encoder.layer.0.attention.self.query": 20, "query": 1}}, 20 / 4),
        ({"alpha_pattern": {r"layer\.\d+\.attention\.self\.(query|key)": 5}}, 5 / 4),
        ({"alpha_pattern": {"uery": 20, "value": 20}}, 8 / 4),
        ({"alpha_pattern": {"[a-z]*query": 5}}, 5 / 4),
        ({"alpha_pattern": {r"layer\.[0-1]+\..*query": 5}}, 5 / 4),
        ({"alpha_pattern": {".*" * 12 + "X": 5, "(a+)+": 5, "(q|u|e|r|y)+": 20}}, 20 / 4),
    ],
)
def test_scale(base: Path, settings: dict[str, Any], scale: float) -> None:
    adapter = write_adapter(base, {QUERY: 4}, **settings)
    merged = hub.open_model(adapter).weights
    np.testing.assert_allclose(
        merged[f"{QUERY}.weight"], expected_weight(adapter, base, QUERY, scale), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(merged[f"{DENSE}.weight"], hub.open_model(base).weights[f"{DENSE}.weight"])


def test_each_layer_has_the_rank_of_its_matrices(base: Path) -> None:
    adapter = write_adapter(base, {QUERY: 2, DENSE: 8, VISION: 1}, rank_pattern={"query": 2, "dense": 8, "fc1": 1})
    merged = hub.open_model(adapter).weights
    for module, rank in {QUERY: 2, DENSE: 8, VISION: 1}.items():
        np.testing.assert_allclose(
            merged[f"{module}.weight"], expected_weight(adapter, base, module, 8 / rank), rtol=1e-4, atol=1e-5
        )


def test_layers_trained_whole_and_half_precision(base: Path) -> None:
    bias = np.arange(31, dtype=np.float32)
    adapter = write_adapter(base, {QUERY: 4}, {"base_model.model.output.bias": bias})
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({k: torch.from_numpy(x).bfloat16() for k, x in tensors.items()}, adapter / "adapter_model.bin")
    merged = hub.open_model(adapter).weights
    np.testing.assert_array_equal(merged["output.bias"], bias)
    assert merged[f"{QUERY}.weight"].dtype == np.float32


def test_a_caption_of_the_adapter_is_that_of_the_merged_model(base: Path) -> None:
    adapter = write_adapter(base, {QUERY: 4, DENSE: 4, VISION: 4})
    reference = gitfast.load(adapter, engine="reference").caption(random_image(1))
    assert gitfast.load(adapter).caption(random_image(1)).token_ids == reference.token_ids
    plain = gitfast.load(base).score(random_image(1), "a red square")
    assert abs(gitfast.load(adapter).score(random_image(1), "a red square") - plain) > 0.1


@pytest.mark.parametrize("revision", [None, "v2", "refs/pr/1"])
def test_an_adapter_names_the_revision_of_its_base(
    revision: str | None, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, **arguments: Any) -> str:
        asked.append((repository, arguments["revision"]))
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    adapter = write_adapter(base, {QUERY: 4}, base_model_name_or_path="someone/base", revision=revision)
    hub.open_model(adapter, local_files_only=True)
    hub.open_model(adapter, local_files_only=True, base="someone/other")
    assert asked == [("someone/base", revision), ("someone/other", None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' can be merged"),
        ({"use_dora": True}, "use_dora is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base model"),
        ({"lora_alpha": "many"}, "expected a number, got 'many'"),
        ({"lora_alpha": 10**400}, "adapter_config.json: alpha of 'lora_alpha': expected a number, got inf"),
        ({"alpha_pattern": ["query"]}, "alpha_pattern: expected an object"),
        ({"alpha_pattern": {"(?=query)": 1}}, "ASSERT is not supported"),
        ({"alpha_pattern": {"((a{99}){99}){99}": 1}}, "more than 4000 states"),
        ({"alpha_pattern": {"a" * 1001: 1}}, "longer than 1000 characters"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens: not supported; merge it with peft"),
        ({"trainable_token_indices": [5, 6]}, "trainable_token_indices: not supported"),
        ({"target_parameters": ["query.weight"], "alpha_pattern": {"query": 3}}, "target_parameters: not supported"),
        ({"alpha_pattern": {"(query": 1}}, r"pattern '\(query'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        ({"revision": 2}, "revision: expected a branch, tag or commit of the base model, got 2"),
        ({"revision": "a/../../b"}, "revision: expected a branch, tag or commit"),
        ({"base_model_name_or_path": "no such model"}, "'no such model' is not found .* with base="),
    ],
)
def test_other_adapters_are_refused(base: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        hub.open_model(write_adapter(base, {QUERY: 4}, **settings))


def test_everything_that_does_not_fit_is_listed(base: Path) -> None:
    prefix = "base_model.model."
    extra = {
        f"{prefix}git.other.lora_A.weight": np.zeros((4, 4), np.float32),
        f"{prefix}git.other.lora_B.weight": np.zeros((4, 4), np.float32),
        f"{prefix}{DENSE}.lora_A.weight": np.zeros((4, 5), np.float32),
        f"{prefix}{DENSE}.lora_B.weight": np.zeros((32, 4), np.float32),
        f"{prefix}{VISION}.lora_B.weight": np.zeros((40, 4), np.float32),
        f"{prefix}output.bias": np.zeros(7, np.float32),
        f"{prefix}score.weight": np.zeros(7, np.float32),
    }
    with pytest.raises(CheckpointError) as caught:
        hub.open_model(write_adapter(base, {QUERY: 4}, extra))
    message = str(caught.value)
    assert "does not fit its base model in 5:" in message
    for part in (
        "git.other.lora_A.weight: the model has no git.other.weight",
        f"{DENSE}.lora_A.weight: lora_A (4, 5) and lora_B (32, 4) do not make a weight of shape (32, 48)",
        f"{VISION}.lora_B.weight: its lora_A is missing",
        "output.bias: expected shape (31,), got (7,)",
        "score.weight: the model has no score.weight",
    ):
        assert part in message


def test_a_training_run_names_its_checkpoints(base: Path) -> None:
    run = base.parent / "run"
    for step in (500, 1000):
        write_checkpoint(run / f"checkpoint-{step}")
    with pytest.raises(CheckpointError, match="did you mean one of its folders checkpoint-1000, checkpoint-500"):
        hub.open_model(run)
