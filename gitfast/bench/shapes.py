"""The shapes that the kernels meet in the published models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.published import SHAPES

# Every width and number of tokens that the published models have; the others repeat these.
MODELS = ("git-base", "git-large", "git-base-vqav2", "git-base-vatex")
IMAGES = (1, 8, 64)
BEAMS = (1, 4, 8)
# Bytes of a stored value.
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "w8a8": 1, "float8": 1}
TEXT = 10  # text tokens that a row of decoding sees: half of a caption
MOST_ROWS = 16_448  # 64 images of git-large; more rows only repeat what these show

Stage = Literal["vision", "prefix", "decode"]
STAGES: tuple[Stage, ...] = ("vision", "prefix", "decode")


@dataclass(frozen=True)
class Rows:
    """Rows that go through a layer together: ``images`` x tokens of an image, or ``images`` x beams."""

    model: str
    stage: Stage
    images: int
    rows: int
    width: int
    mlp: int

    @property
    def label(self) -> str:
        return f"{self.model} {self.stage}"


@dataclass(frozen=True)
class Attention:
    """``rows`` of each image over its ``prefix`` tokens and ``text`` tokens of their own."""

    model: str
    stage: Stage
    images: int
    rows: int
    prefix: int
    text: int
    heads: int
    head_dim: int

    @property
    def label(self) -> str:
        return f"{self.model} {self.stage}"

    @property
    def size(self) -> str:
        text = f" + {self.text}" if self.text else ""
        return f"{self.images} x {self.rows} over {self.prefix}{text}, {self.heads} heads"

    @property
    def keys(self) -> int:
        """Keys that all rows together see: the factor of the arithmetic."""
        return self.images * self.rows * (self.prefix + self.text)

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values must be read once."""
        return self.images * (self.prefix + self.rows * self.text)


def layer_rows(models: Iterable[str], stages: Iterable[Stage] = STAGES) -> Iterator[Rows]:
    """Return all numbers of rows with their widths, each once."""
    seen = set()
    for name in models:
        for rows in _layer_rows(name, SHAPES[name]):
            key = (rows.rows, rows.width, rows.mlp)
            if key not in seen and rows.rows <= MOST_ROWS and rows.stage in stages:
                seen.add(key)
                yield rows


def _layer_rows(name: str, config: GitConfig) -> Iterator[Rows]:
    vision, frames = config.vision_config, config.num_image_with_embedding or 1
    for images in IMAGES:
        rows = images * frames * vision.num_tokens
        yield Rows(name, "vision", images, rows, vision.hidden_size, vision.intermediate_size)
        rows = images * config.num_image_tokens
        yield Rows(name, "prefix", images, rows, config.hidden_size, config.intermediate_size)
    for images in IMAGES:
        for beams in BEAMS:
            yield Rows(name, "decode", images, images * beams, config.hidden_size, config.intermediate_size)


def attentions(models: Iterable[str], images: Iterable[int] = IMAGES) -> Iterator[Attention]:
    """Return every shape of attention once."""
    seen = set()
    for name in models:
        for case in _attentions(name, SHAPES[name], tuple(images)):
            key = (case.images, case.rows, case.prefix, case.text, case.heads, case.head_dim)
            if key not in seen and case.images * case.prefix <= MOST_ROWS:
                seen.add(key)
                yield case


def _attentions(name: str, config: GitConfig, images: Iterable[int]) -> Iterator[Attention]:
    vision, frames, prefix = config.vision_config, config.num_image_with_embedding or 1, config.num_image_tokens
    for n in images:
        tokens, heads = vision.num_tokens, vision.num_attention_heads
        if frames == 1:  # frames are images of their own to the vision encoder
            yield Attention(name, "vision", n, tokens, tokens, 0, heads, vision.head_dim)
        yield Attention(name, "prefix", n, prefix, prefix, 0, config.num_attention_heads, config.head_dim)
        for beams in BEAMS:
            yield Attention(name, "decode", n, beams, prefix, TEXT, config.num_attention_heads, config.head_dim)
