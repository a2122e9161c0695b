"""The activations that ``linear`` applies, against gitfast.ops.reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast import ops
from gitfast.ops import reference

from support.accuracy import poisoned


@settings(deadline=None)
@given(rows=st.integers(1, 9), d=st.integers(1, 90), scale=st.sampled_from([0.01, 1.0, 9.0]))
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("isa", ops.available_isas())
def test_activations(isa: str, activation: str, rows: int, d: int, scale: float) -> None:
    """Multiplied by the identity, the product is the activation alone."""
    x = np.random.default_rng(rows * 100 + d).standard_normal((rows, d), np.float32) * np.float32(scale)
    y = ops.linear(x, np.eye(d, dtype=np.float32), activation=activation, out=poisoned(rows, d), isa=isa)
    truth = getattr(reference, f"bias_{activation}")(x.astype(np.float64), None)
    np.testing.assert_allclose(y, truth, rtol=2e-6, atol=2e-6)
