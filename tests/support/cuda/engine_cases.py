"""The bundled model on the CUDA engine, and pictures for it."""

from __future__ import annotations

from typing import Any

from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines.cuda.engine import CudaEngine

from support.paths import ROOT

MODEL = ROOT / "models" / "git-tiny"
IMAGES = sorted((ROOT / "examples" / "images").glob("*.png"))[:3]


def make_engine(device: str, dtype: str = "float16", **options: Any) -> CudaEngine:
    """Build the engine; ``options`` go to ``CudaEngine.from_weights``."""
    checkpoint = open_checkpoint(MODEL)
    return CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype=dtype, **options)
