"""The fast tier, which plain `pytest` runs, samples what `pytest -m "slow or not slow"` tries in full."""

from __future__ import annotations

import pytest

# True where slow tests run as well; tests/conftest.py sets it before test modules are imported.
thorough = False


def examples(count: int) -> int:
    """Return how many examples hypothesis tries where all tests together try ``count``."""
    return count if thorough else max(10, count // 10)


def slow(*values: object) -> object:
    """Mark the values of one parametrisation as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)
