"""The bundled model on the CUDA engine, and pictures for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gitfast.checkpoints.checkpoint import expected_tensors, open_checkpoint
from gitfast.engines.cuda.engine import CudaEngine

from support.paths import ROOT

MODEL = ROOT / "models" / "git-tiny"
IMAGES = sorted((ROOT / "examples" / "images").glob("*.png"))[:3]


def make_engine(device: str, dtype: str = "float16", *, shallow: bool = False, **options: Any) -> CudaEngine:
    """Build the engine; ``options`` go to ``CudaEngine.from_weights``.

    ``shallow``: with the first layer alone of the encoder and of the decoder, for tests that compare the engine with
    itself. Emulated, a step takes a third of the time.
    """
    checkpoint = open_checkpoint(MODEL)
    config, weights = checkpoint.config, checkpoint.weights
    if shallow:
        config = replace(config, num_hidden_layers=1, vision_config=replace(config.vision_config, num_hidden_layers=1))
        weights = {name: weights[name] for name in expected_tensors(config)}
    return CudaEngine.from_weights(config, weights, device=device, dtype=dtype, **options)
