"""Small checkpoints with random weights, in the layout of Hugging Face, and images for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from gitfast.checkpoints.checkpoint import expected_tensors
from gitfast.checkpoints.config import GitConfig

WORDS = "a the red green blue square circle on left of how many is what color shape there two one no yes ? . ,"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), "##s", "##ish"]

CONFIG = {
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
}


def write_checkpoint(folder: Path, *, seed: int = 0, **overrides: object) -> Path:
    """A checkpoint folder whose captions depend on the image and end at different lengths."""
    config = GitConfig.from_dict({**CONFIG, **overrides})
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_tensors(config).items():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        sharper = any(part in name for part in ("query", "key", "q_proj", "k_proj", "output.weight"))
        weights[name] = rng.normal(1.0 if is_scale else 0.0, 0.8 if sharper else 0.3, shape).astype(np.float32)
    weights["output.bias"][config.eos_token_id] += 2.0
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    edge = config.vision_config.image_size
    kind = "VideoMAEImageProcessor" if config.is_video else "CLIPImageProcessor"
    preprocessor = {"image_processor_type": kind, "size": {"shortest_edge": edge}, "crop_size": edge}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    return folder


def random_image(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """(width, height) of coarse random colours, which survive resizing."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
