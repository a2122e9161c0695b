from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gitfast import _C
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines.cpu import CpuEngine
from gitfast.inputs.processor import Processor
from gitfast.ops import cuda

from support.cuda import emulated
from support.cuda.engine_cases import MODEL


@pytest.fixture(scope="session")
def emulation_file() -> Path:
    """The built emulation of the kernels of this checkout."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    try:
        return emulated.build(emulated.ROOT, emulated.ROOT / "build" / "emulation")
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the emulation does not build:\n{error.stdout}{error.stderr}")


@pytest.fixture(scope="session")
def emulation(emulation_file: Path) -> ModuleType:
    return emulated.load(emulation_file)


@pytest.fixture(params=emulated.ORDERS)
def order(request: pytest.FixtureRequest, emulation: ModuleType) -> str:
    """Every order of threads."""
    emulation.set_order(request.param, seed=1)
    return request.param


@pytest.fixture
def emulated_ops(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """gitfast.ops.cuda runs emulated kernels on tensors of the host."""
    emulation.set_order("forward")
    monkeypatch.setattr(cuda, "_kernels", lambda _: emulation)
    monkeypatch.setattr(cuda, "_stream", lambda _: 0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The device that kernels run on; on "cpu" they are emulated."""
    if request.param == "cpu":
        request.getfixturevalue("emulated_ops")
    elif not hasattr(_C, "cuda") or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a build with CUDA")
    return request.param


@pytest.fixture(scope="session")
def cpu() -> CpuEngine:
    """The CPU engine with the bundled model, to compare with."""
    checkpoint = open_checkpoint(MODEL)
    return CpuEngine.from_weights(checkpoint.config, checkpoint.weights)


@pytest.fixture(scope="session")
def processor() -> Processor:
    """The processor of the bundled model."""
    return Processor.from_folder(MODEL, open_checkpoint(MODEL).config)
