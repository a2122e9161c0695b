from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import emulated
import pytest


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
