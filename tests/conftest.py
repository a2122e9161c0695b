"""Fixtures of all tests: small checkpoints with random weights, pictures, and the emulation of the CUDA kernels."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from support import tiers
from support.cuda import emulated
from support.paths import ROOT
from support.tiny_checkpoint import random_image, write_checkpoint

# Several processes test at once: threads of torch that wait for one another must not spin on the CPUs of their
# neighbours. Read when torch is first imported, also by processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Checks before a change lands must not depend on luck; run by hand, every run tries other examples.
hypothesis.settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    tiers.thorough = config.option.markexpr != "not slow"


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("image-model"))


@pytest.fixture(scope="session")
def video_checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small video checkpoint of three frames."""
    return write_checkpoint(tmp_path_factory.mktemp("video-model"), num_image_with_embedding=3)


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five PNG files."""
    folder = tmp_path_factory.mktemp("images")
    files = [folder / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        random_image(i).save(file)
    return files


@pytest.fixture(scope="session")
def emulation_file() -> Path:
    """The built emulation of the kernels of this checkout."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    try:
        return emulated.build(ROOT, ROOT / "build" / "emulation")
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the emulation does not build:\n{error.stdout}{error.stderr}")


@pytest.fixture(scope="session")
def emulation(emulation_file: Path) -> ModuleType:
    return emulated.load(emulation_file)


@pytest.fixture
def emulated_ops(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """gitfast.ops.cuda runs emulated kernels on tensors of the host."""
    emulation.set_order("forward")
    monkeypatch.setattr("gitfast.ops.cuda._kernels", lambda _: emulation)
    monkeypatch.setattr("gitfast.ops.cuda._stream", lambda _: 0)
