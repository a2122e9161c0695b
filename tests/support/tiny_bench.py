"""``gitfast.bench`` on models so small that its times mean nothing."""

from __future__ import annotations

import pytest

from gitfast.bench import caption, cpu_clock, peers
from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.checkpoints.published import SHAPES

TINY = GitConfig(
    vocab_size=110,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=2,
    max_position_embeddings=40,
    num_hidden_layers=2,
    vision_config=GitVisionConfig(
        hidden_size=48, intermediate_size=72, num_attention_heads=3, num_hidden_layers=2, image_size=32, patch_size=8
    ),
)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models are ``TINY``, with 17 image tokens; the video model has two frames. Nothing is compiled."""
    for name in SHAPES:
        monkeypatch.setitem(SHAPES, name, TINY)
    video = GitConfig.from_dict({**TINY.to_dict(), "num_image_with_embedding": 2})
    monkeypatch.setitem(SHAPES, "git-base-vatex", video)
    monkeypatch.setattr(cpu_clock, "GEMMS", ((32, 32, 32),))
    monkeypatch.setattr(cpu_clock, "FLUSH_BYTES", (1 << 20, 1 << 20))
    monkeypatch.setattr(cpu_clock, "PAUSE", 0)
    monkeypatch.setattr(caption, "PAUSE_S", 0)
    monkeypatch.setattr(cpu_clock, "MOST_CALLS", 1)
    monkeypatch.setattr(peers, "compile_problem", lambda torch, device: "a test compiles nothing")
