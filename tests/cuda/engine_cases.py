"""The bundled model on the CUDA engine, and pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gitfast.checkpoint import open_checkpoint
from gitfast.engines.cuda import CudaEngine

_ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = _ROOT / "models" / "git-tiny"
IMAGES = sorted((_ROOT / "examples" / "images").glob("*.png"))[:3]


def make_engine(device: str, dtype: str = "float16", **options: Any) -> CudaEngine:
    """``options`` as ``CudaEngine.from_weights`` takes them."""
    checkpoint = open_checkpoint(MODEL)
    return CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype=dtype, **options)
