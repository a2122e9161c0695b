"""Both families of classes: plain torch modules, and those built on transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gitfast.compat import configuration, hf, hf_processing, modeling, processing


def make_kit(name: str) -> SimpleNamespace:
    if name == "plain":
        models, settings, processor = modeling, configuration, processing.GitProcessor
    else:
        models, settings, processor = hf, hf, hf_processing.GitProcessor
    return SimpleNamespace(
        name=name,
        GitConfig=settings.GitConfig,
        GitVisionConfig=settings.GitVisionConfig,
        GenerationConfig=settings.GenerationConfig,
        GitForCausalLM=models.GitForCausalLM,
        GitModel=models.GitModel,
        GitVisionModel=models.GitVisionModel,
        GitProcessor=processor,
    )


@pytest.fixture(params=["plain", "transformers"], scope="session")
def kit(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The classes of ``gitfast.compat`` without and with transformers."""
    return make_kit(request.param)
