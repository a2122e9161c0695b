"""The CPU engine's argument checks for engines in Python: the same limits, in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gitfast import _C, arguments
from gitfast.checkpoints.config import GitConfig
from gitfast.engines.search import native_options
from gitfast.types import CancelToken, GenerationOptions, ImagePrefix, cancel_flag

Prefix = TypeVar("Prefix")


def check_pixels(
    pixel_values: object, config: GitConfig, *, interpolate_positions: bool, take_bytes: bool = False
) -> None:
    """Raise ``ValueError`` where pixels, float32 (B, 3, H, W) or (B, T, 3, H, W), do not suit the model.

    ``take_bytes``: uint8 of the same shape will do too.
    """
    vision, frames = config.vision_config, config.num_image_with_embedding or 0
    _C.check_pixels(pixel_values, take_bytes, interpolate_positions, vision.image_size, vision.patch_size, frames)


def check_text(
    prefixes: Sequence[ImagePrefix | None],
    texts: Sequence[Sequence[int]],
    name: str,
    config: GitConfig,
    prefix_type: type[Prefix],
    new_tokens: int = 0,
) -> list[Prefix | None]:
    """Return the prefixes in their own type; raise ``ValueError`` or ``TypeError`` where they or texts do not suit.

    Args:
        name: The argument that holds ``texts``.
        new_tokens: New tokens for which each text must leave room.
    """
    _C.check_texts(texts, name, new_tokens, config.vocab_size, config.max_position_embeddings)
    if len(prefixes) != len(texts):
        raise ValueError(f"prefixes: expected one for each of the {len(texts)} {name}, got {len(prefixes)}")
    own: list[Prefix | None] = []
    for r, prefix in enumerate(prefixes):
        if prefix is not None and not isinstance(prefix, prefix_type):
            got = type(prefix).__name__
            raise TypeError(f"prefixes[{r}]: expected a prefix of this engine or None, got {got}")
        own.append(prefix)
    return own


def check_generate(
    prefixes: Sequence[ImagePrefix | None],
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    on_token: object,
    config: GitConfig,
    prefix_type: type[Prefix],
) -> list[Prefix | None]:
    """Do ``check_text`` for prompts, and check the options and the callback too."""
    if on_token is not None and not callable(on_token):
        raise TypeError(f"on_token: expected a function or None, got {arguments.shown(on_token)}")
    _C.check_search(native_options(options, config.eos_token_ids), prompts, config.vocab_size)
    return check_text(prefixes, prompts, "prompts", config, prefix_type, options.max_new_tokens)


def check_cancelled(cancel: CancelToken | None) -> None:
    """Raise ``CancelledError`` or ``DeadlineError`` where a call is to end; for engines without native steps."""
    if cancel_flag(cancel) is not None and cancel is not None:
        cancel.check()
