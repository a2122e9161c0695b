from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import emulated
import pytest
import torch

from gitfast import _C
from gitfast.ops import cuda


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


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the engine runs: on "cpu" its kernels are emulated."""
    if request.param == "cuda":
        if not hasattr(_C, "cuda") or not torch.cuda.is_available():
            pytest.skip("needs a CUDA device and a build with CUDA")
    else:
        emulation = request.getfixturevalue("emulation")
        emulation.set_order("forward")
        monkeypatch.setattr(cuda, "_kernels", lambda _: emulation)
        monkeypatch.setattr(cuda, "_stream", lambda _: 0)
    return request.param
