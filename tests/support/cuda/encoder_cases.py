"""Small models for the encoder of the CUDA engine, and their prefixes by the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.checkpoints.config import GitConfig
from gitfast.engines.cuda.engine import CudaEngine, CudaPrefix
from gitfast.engines.reference import ReferenceEngine, ReferencePrefix

from support.tiny_checkpoint import write_checkpoint


def write_model(folder: Path, **overrides: object) -> Path:
    shape = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 64}
    return write_checkpoint(folder, **{**shape, **overrides})


def read_model(folder: Path, factor: float = 0.3) -> tuple[GitConfig, dict[str, np.ndarray]]:
    """Weights with matrices so small that no softmax is sharp, so that rounding errors are not amplified."""
    checkpoint = open_checkpoint(folder)
    weights = {name: np.asarray(x) for name, x in checkpoint.weights.items()}
    return checkpoint.config, {name: x * np.float32(factor if x.ndim > 1 else 1) for name, x in weights.items()}


def make_engine(folder: Path, device: str, **options: object) -> CudaEngine:
    return CudaEngine.from_weights(*read_model(folder), device=device, dtype="float16", **options)


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def values(prefix: CudaPrefix) -> np.ndarray:
    """Keys and values as they are meant: float32 (2, layers, H, P, head_dim)."""
    both = torch.stack([prefix.keys, prefix.values]).float()
    if prefix.k_scale is not None and prefix.v_scale is not None:
        both *= torch.stack([prefix.k_scale, prefix.v_scale])[..., None]
    return both.cpu().numpy()


def expected(folder: Path, pixels: np.ndarray) -> list[np.ndarray]:
    prefixes = ReferenceEngine.from_weights(*read_model(folder)).encode(pixels, interpolate_positions=True)
    return [layer_values(prefix) for prefix in prefixes]


def layer_values(prefix: ReferencePrefix) -> np.ndarray:
    """``values`` of the reference, in its precision."""
    return torch.stack([torch.stack([pair[i] for pair in prefix.layers]) for i in (0, 1)]).double().numpy()


def assert_near(got: list[CudaPrefix], truth: list[np.ndarray], tolerance: float) -> None:
    """RMS error, relative to the RMS of the values themselves."""
    assert len(got) == len(truth)
    for prefix, exact in zip(got, truth, strict=True):
        assert values(prefix).shape == exact.shape
        assert np.sqrt(np.mean((values(prefix) - exact) ** 2) / np.mean(exact**2)) < tolerance
