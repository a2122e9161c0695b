"""The least that a caption asks of a device: weights and prefixes read at every step, all products of matrices.

Work is counted by the shapes of a model, as in docs/performance.md; ``Ceilings`` gives its least time.
"""

from __future__ import annotations

from dataclasses import dataclass

from gitfast.bench.ceilings import Ceilings
from gitfast.bench.shapes import DTYPE_BYTES
from gitfast.checkpoints.config import GitConfig


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic of one phase."""

    flops: float
    num_bytes: float

    def seconds(self, ceilings: Ceilings, dtype: str) -> float:
        """Return the least time with factors of ``dtype``."""
        return ceilings.least_seconds(self.flops, self.num_bytes, dtype)[0]


def caption(
    config: GitConfig,
    batch: int,
    new_tokens: int,
    dtype: str,
    ceilings: Ceilings,
    *,
    prefix_dtype: str | None = None,
    head_bytes: int | None = None,
) -> float:
    """Return the least seconds of ``batch`` captions.

    Where no product of 8-bit weights was measured (cuda), they are multiplied, and images encoded, in bfloat16.
    ``head_bytes``: of each weight of the head, where they are read in another dtype than the others.
    """
    factors = ceilings.factors(dtype)
    prefix = prefix_dtype or (dtype if dtype in ("float64", "float32") else "bfloat16")
    text = step(config, batch, DTYPE_BYTES[dtype], DTYPE_BYTES[prefix], head_bytes)
    image = encode(config, batch, DTYPE_BYTES[factors])
    return image.seconds(ceilings, factors) + new_tokens * text.seconds(ceilings, factors)


def encode(config: GitConfig, batch: int, weight_bytes: int = 2) -> Work:
    """Count the work from pixels to keys and values of every layer; the last layer needs no more than these."""
    vision, frames = config.vision_config, config.num_image_with_embedding or 1
    width, tokens = vision.hidden_size, vision.num_tokens
    in_layers = vision.num_hidden_layers * (4 * width**2 + 2 * width * vision.intermediate_size)
    patches = 3 * vision.patch_size**2 * width
    attention = 4 * tokens**2 * width * vision.num_hidden_layers
    of_frame = 2 * tokens * (in_layers + patches) + attention

    hidden, prefix, whole_layers = config.hidden_size, config.num_image_tokens, config.num_hidden_layers - 1
    decoder = whole_layers * _layer(config) + 2 * hidden**2
    of_prefix = 2 * prefix * (decoder + width * hidden) + 4 * prefix**2 * hidden * whole_layers
    weights = in_layers + patches + width * hidden + decoder
    return Work(batch * (frames * of_frame + of_prefix), weight_bytes * weights)


def step(config: GitConfig, batch: int, weight_bytes: int, prefix_bytes: int, head_bytes: int | None = None) -> Work:
    """Count the work of one more token per image: bytes of each weight and prefix value. Text is little."""
    layers, head = config.num_hidden_layers * _layer(config), config.vocab_size * config.hidden_size
    prefix = 2 * config.num_hidden_layers * config.num_image_tokens * config.hidden_size
    read = weight_bytes * layers + (weight_bytes if head_bytes is None else head_bytes) * head
    return Work(2 * batch * (layers + head + prefix), read + prefix_bytes * batch * prefix)


def _layer(config: GitConfig) -> int:
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
