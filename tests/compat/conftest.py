"""Both families of classes: plain torch modules, and those built on transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gitfast.compat import configuration, hf, hf_processing, modeling, processing

from support.tiny_checkpoint import write_checkpoint


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(kit: Any, folder: Path) -> Any:
    return kit.GitForCausalLM.from_pretrained(folder)
