"""The 17 checkpoints that Microsoft published, by name, and the shape of each.

Everything that needs the shape of a published model reads it here: names on the hub, benchmarks, tests.
"""

from __future__ import annotations

from gitfast.checkpoints.config import GitConfig, GitVisionConfig


def _base(image_size: int = 224, frames: int | None = None) -> GitConfig:
    """Make a shape with CLIP ViT-B/16: 197 image tokens at 224 pixels, 901 at 480, 6 x 197 of a clip."""
    return GitConfig(vision_config=GitVisionConfig(image_size=image_size), num_image_with_embedding=frames)


def _large(image_size: int = 224, frames: int | None = None) -> GitConfig:
    """Make a shape with CLIP ViT-L/14: 257 image tokens at 224 pixels, 901 at 420, 6 x 257 of a clip; base decoder."""
    vision = GitVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=image_size,
        patch_size=14,
    )
    return GitConfig(vision_config=vision, num_image_with_embedding=frames)


SHAPES: dict[str, GitConfig] = {
    "git-base": _base(),
    "git-base-coco": _base(),
    "git-base-textcaps": _base(),
    "git-base-vqav2": _base(image_size=480),
    "git-base-textvqa": _base(image_size=480),
    "git-base-vatex": _base(frames=6),
    "git-base-msrvtt-qa": _base(frames=6),
    "git-large": _large(),
    "git-large-coco": _large(),
    "git-large-textcaps": _large(),
    "git-large-vqav2": _large(image_size=420),
    "git-large-textvqa": _large(image_size=420),
    "git-large-vatex": _large(frames=6),
    "git-large-msrvtt-qa": _large(frames=6),
    "git-large-r": _large(),
    "git-large-r-coco": _large(),
    "git-large-r-textcaps": _large(),
}


def full_name(name: str) -> str:
    """Return the full name of a published checkpoint, "base" or "git-base"; other names stay."""
    return f"git-{name}" if f"git-{name}" in SHAPES else name
