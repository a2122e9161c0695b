"""Fixtures of the CUDA tests: kernels on a device or emulated, and the CPU engine to compare with."""

from __future__ import annotations

import pytest
import torch

from gitfast import _C
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines.cpu import CpuEngine
from gitfast.inputs.processor import Processor

from support.cuda.engine_cases import MODEL
from support.cuda.kernels import Kernels


@pytest.fixture(params=["device", "emulated"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The kernels on a device, and emulated. Marks of support.cuda.kernels choose one, or every order of threads."""
    kind, _, order = request.param.partition(" ")
    if kind == "emulated":
        return Kernels(request.getfixturevalue("emulation"), "cpu", order or "forward")
    if not hasattr(_C, "cuda") or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a build with CUDA")
    return Kernels(_C.cuda, "cuda")


@pytest.fixture
def device(kernels: Kernels, request: pytest.FixtureRequest) -> str:
    """The device whose tensors gitfast.ops.cuda takes; on "cpu" its kernels are emulated."""
    if kernels.emulated:
        request.getfixturevalue("emulated_ops")
    return kernels.device


@pytest.fixture(scope="session")
def cpu() -> CpuEngine:
    """The CPU engine with the bundled model, to compare with."""
    checkpoint = open_checkpoint(MODEL)
    return CpuEngine.from_weights(checkpoint.config, checkpoint.weights)


@pytest.fixture(scope="session")
def processor() -> Processor:
    """The processor of the bundled model."""
    return Processor.from_folder(MODEL, open_checkpoint(MODEL).config)
