"""Microsoft's checkpoints: made of Hugging Face tensors by the table in reverse, they open to the same tensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.errors import CheckpointError

from support.tiny_checkpoint import write_checkpoint

# Heads of width 64, as in all of Microsoft's models: their files do not say how many heads there are.
SIZES = {
    "vocab_size": 120,  # without a configuration the special tokens are BERT's: 101 and 102
    "hidden_size": 128,
    "num_attention_heads": 2,
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 32,
        "patch_size": 8,
    },
}
VISION = "git.image_encoder.vision_model."
BACK = [
    (re.escape(VISION) + r"embeddings\.class_embedding", "image_encoder.class_embedding"),
    (re.escape(VISION) + r"embeddings\.position_embedding\.weight", "image_encoder.positional_embedding"),
    (re.escape(VISION) + r"embeddings\.patch_embedding\.weight", "image_encoder.conv1.weight"),
    (re.escape(VISION) + r"pre_layrnorm", "image_encoder.ln_pre"),
    (re.escape(VISION) + r"post_layernorm", "image_encoder.ln_post"),
    (re.escape(VISION) + r"encoder\.layers\.(\d+)", r"image_encoder.transformer.resblocks.\1"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])", r".ln_\1"),
    (r"\.mlp\.fc1", ".mlp.c_fc"),
    (r"\.mlp\.fc2", ".mlp.c_proj"),
    (r"^git\.embeddings\.word_embeddings", "textual.embedding.words"),
    (r"^git\.embeddings\.position_embeddings", "textual.embedding.positions"),
    (r"^git\.embeddings\.LayerNorm", "textual.embedding.layer_norm"),
    (r"^git\.visual_projection\.visual_projection", "textual.visual_projection"),
    (r"^git\.encoder", "textual.transformer.encoder"),
    (r"^git\.img_temporal_embedding", "img_temperal_embedding"),
    (r"^output", "textual.output"),
]


def microsoft_name(name: str) -> str:
    for pattern, replacement in BACK:
        name = re.sub(pattern, replacement, name)
    return name


def to_microsoft(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    renamed = {microsoft_name(name): torch.from_numpy(x.copy()) for name, x in weights.items()}
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return {**renamed, "image_encoder.proj": torch.zeros(64, 32)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("frames", [None, 3])
def test_opens_to_the_same_tensors_and_configuration(tmp_path: Path, prefix: str, frames: int | None) -> None:
    folder = write_checkpoint(tmp_path / "model", **SIZES, num_image_with_embedding=frames)
    config, weights = open_checkpoint(folder).config, load_file(folder / "model.safetensors")
    microsoft = {prefix + name: x for name, x in to_microsoft(weights).items()}
    torch.save({"model": microsoft, "iteration": 1}, folder / "model.pt")
    (folder / "model.safetensors").unlink()
    assert not any("git." in name for name in microsoft)

    with_config = open_checkpoint(folder)
    assert with_config.config == config
    (folder / "config.json").unlink()
    opened = open_checkpoint(folder)
    assert opened.weights.keys() == weights.keys()
    for name, x in weights.items():
        np.testing.assert_array_equal(opened.weights[name], x)
    assert opened.config.vision_config == config.vision_config
    assert opened.config.num_image_with_embedding == frames
    assert opened.config.num_attention_heads == config.num_attention_heads


def test_what_the_configuration_would_follow_from_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", **SIZES)
    microsoft = to_microsoft(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    del microsoft["image_encoder.conv1.weight"]
    torch.save({"model": microsoft}, folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: no config\.json, .*patch_embedding\.weight: it is missing"):
        open_checkpoint(folder)
