"""Rows of image and text: the keys that each sees, and the checks of their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gitfast import arguments
from gitfast.errors import ArgumentError


def visible_keys(mask: Tensor, past: int, length: int, images: int, images_before: int) -> Tensor:
    """Make the mask (R, 1, images + L, images_before + past + images + L) from one of text (R, past + L), both bool.

    The text's mask is False at padding. Image rows see image rows; text rows see all image rows, and the real text up
    to themselves. ``images_before`` image tokens and ``past`` text tokens are cached.
    """
    rows, total = mask.shape
    device = mask.device
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()[past:]
    text = causal & mask[:, None, :]  # (R, L, past + L)
    text = torch.cat([text.new_ones(rows, length, images_before + images), text], dim=-1)
    if not images:
        return text[:, None]
    image = torch.zeros(rows, images, text.shape[-1], dtype=torch.bool, device=device)
    image[..., :images] = True
    return torch.cat([image, text], dim=1)[:, None]


def check_tensors(**values: Any) -> None:
    """Refuse arguments that are neither tensors nor None.

    Raises:
        ArgumentError: the message names the argument.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            raise ArgumentError(f"{name}: expected a tensor, got {arguments.shown(value)}")


def check_text(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    pixel_values: Tensor | None,
    past: int,
    cached: int,
) -> tuple[int, int]:
    """Check text rows behind ``past`` cached text tokens; return R and L. ``cached`` counts image tokens too.

    Raises:
        ValueError: arguments that do not fit each other; the message names them.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids, inputs_embeds: expected exactly one of them")
    rows, length = (input_ids if input_ids is not None else inputs_embeds).shape[:2]  # type: ignore[union-attr]
    if pixel_values is not None and cached:
        raise ValueError("pixel_values: expected none with past_key_values, which hold the image already")
    if pixel_values is not None and rows % len(pixel_values):
        raise ValueError(f"input_ids: {rows} rows do not divide over {len(pixel_values)} images")
    if attention_mask is not None and attention_mask.ndim == 2:
        expected = (rows, past + length)
        if tuple(attention_mask.shape) != expected:
            raise ValueError(f"attention_mask: expected shape {expected}, got {tuple(attention_mask.shape)}")
    return rows, length


def check_labels(labels: Tensor, text: Tensor | None, logits_to_keep: int | Tensor) -> None:
    """Check that labels (R, L) are one per text token, and that the logits they are compared with are computed.

    Raises:
        ValueError: they are not.
    """
    if text is None:  # which is an error of its own
        return
    rows, length = text.shape[:2]
    if tuple(labels.shape) != (rows, length):
        raise ValueError(f"labels: expected shape {(rows, length)}, got {tuple(labels.shape)}")
    if isinstance(logits_to_keep, Tensor) or 0 < logits_to_keep < length:
        raise ValueError(f"logits_to_keep: expected 0 or at least the {length} labels, got {logits_to_keep}")


def check_images(config: Any, pixel_values: Tensor | None, interpolate: bool) -> None:
    """Check that pixels (B, 3, H, W) or (B, T, 3, H, W) suit the configuration.

    Raises:
        ValueError: rank, size or number of frames do not.
    """
    if pixel_values is None:
        return
    shape, edge, patch = tuple(pixel_values.shape), config.vision_config.image_size, config.vision_config.patch_size
    if len(shape) not in (4, 5):
        raise ValueError(f"pixel_values: expected (B, 3, H, W) or (B, T, 3, H, W), got {shape}")
    limit = config.num_image_with_embedding or 0
    if len(shape) == 5 and not 1 <= shape[1] <= limit:
        raise ValueError(f"pixel_values: this model takes clips of at most {limit} frames, got {shape[1]}")
    if shape[-2:] != (edge, edge) and not interpolate:
        raise ValueError(f"pixel_values: expected images of {(edge, edge)}, got {shape[-2:]}")
    if min(shape[-2:]) < patch:
        raise ValueError(f"pixel_values: expected images of at least one patch, got {shape[-2:]}")
