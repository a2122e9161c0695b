"""Images that have not the model's size: both engines resize the position embeddings, as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gitfast
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.reference import ReferenceEngine

from support.tiny_checkpoint import random_image, write_checkpoint

SIZES = [(32, 32), (24, 40), (40, 24), (8, 8), (9, 47), (64, 64), (33, 31), (8, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def pixels(height: int, width: int, *before: int) -> np.ndarray:
    return np.random.default_rng(height * width).standard_normal((*before, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_features_equal_transformers(folder: Path, height: int, width: int) -> None:
    from transformers import GitForCausalLM

    theirs = GitForCausalLM.from_pretrained(folder).eval()
    x = pixels(height, width, 2)
    with torch.inference_mode():
        vision = theirs.git.image_encoder(torch.from_numpy(x), interpolate_pos_encoding=True)
    checkpoint = open_checkpoint(folder)
    engine = CpuEngine.from_weights(checkpoint.config, checkpoint.weights)
    features = engine.features(x, interpolate_positions=True)
    assert features.shape == (2, 1 + (height // 8) * (width // 8), 24)
    np.testing.assert_allclose(features, vision.last_hidden_state.numpy(), atol=2e-4)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("frames", [None, 2])
def test_engines_agree(tmp_path: Path, height: int, width: int, frames: int | None) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, num_image_with_embedding=frames))
    x = pixels(height, width, *((1,) if frames is None else (1, frames)))
    values = []
    for make in (CpuEngine.from_weights, ReferenceEngine.from_weights):
        (prefix,) = make(checkpoint.config, checkpoint.weights).encode(x, interpolate_positions=True)
        values.append(prefix.keys_values(1))
    for ours, theirs in zip(*values, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("engine", [CpuEngine, ReferenceEngine])
def test_other_sizes_must_be_asked_for(folder: Path, engine: Any) -> None:
    checkpoint = open_checkpoint(folder)
    made = engine.from_weights(checkpoint.config, checkpoint.weights)
    with pytest.raises(ValueError, match=r"pixel_values: expected images of .*32.*, got .*24"):
        made.encode(pixels(24, 40, 1))
    with pytest.raises(ValueError, match="at least one patch"):
        made.encode(pixels(7, 40, 1), interpolate_positions=True)


def test_original_preprocessing_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = write_checkpoint(tmp_path, vision_config={**vision, "image_size": 240, "patch_size": 48})
    cpu, reference = (gitfast.load(folder, preprocess="original", engine=engine) for engine in ("cpu", "reference"))
    images = [random_image(0, (500, 400)), random_image(1, (300, 300)), random_image(2, (90, 200))]
    assert [cpu.processor.images(image).shape for image in images] == [
        (1, 3, 240, 300), (1, 3, 240, 240), (1, 3, 320, 144),
    ]  # fmt: skip
    assert [r.token_ids for r in cpu.caption(images)] == [r.token_ids for r in reference.caption(images)]
    assert cpu.encode(images[0]).num_tokens == 1 + 5 * 6
    squares = gitfast.load(folder).encode(images[0])
    assert squares.num_tokens == 1 + 5 * 5
