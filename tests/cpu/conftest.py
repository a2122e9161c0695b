"""The instruction sets that tests of CPU kernels run with."""

from __future__ import annotations

import pytest

from gitfast import ops


@pytest.fixture(params=ops.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set this machine can run."""
    return request.param
