"""A tiny model with random weights on which every term matters, as a torch model and on the CPU engine."""

from __future__ import annotations

import numpy as np
import torch

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.cpu import CpuEngine
from gitfast.torch_model import GitModel
from gitfast.types import GenerationOptions

VISION = {
    "hidden_size": 48,  # not a multiple of a weight panel
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 70,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
PROMPTS = [[2, 5, 6, 7], [2], [2, 9, 9, 20, 30, 4, 5], [2, 8]]
GREEDY = GenerationOptions(max_new_tokens=10)


def make_model(seed: int = 0, **overrides) -> GitModel:
    """Random weights under which every term matters and captions depend on the image."""
    torch.manual_seed(seed)
    model = GitModel(GitConfig.from_dict({**TEXT, "vision_config": VISION, **overrides}))
    with torch.no_grad():
        for name, x in model.named_parameters():
            is_scale = "norm" in name.lower() and name.endswith("weight")
            sharper = any(part in name for part in ("query", "key", "q_proj", "k_proj"))
            x.normal_(mean=1.0 if is_scale else 0.0, std=0.4 if sharper else 0.1)
    return model


def weights_of(model: GitModel, dtype=np.float32) -> dict[str, np.ndarray]:
    return {name: x.numpy().astype(dtype) for name, x in model.state_dict().items()}


def make_engine(model: GitModel, **arguments) -> CpuEngine:
    return CpuEngine.from_weights(model.config, weights_of(model), **{"num_threads": 2, **arguments})


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
