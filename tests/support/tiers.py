"""The fast tier, which plain `pytest` runs, samples what `pytest -m "slow or not slow"` tries in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# True where slow tests run as well; tests/conftest.py sets it before test modules are imported.
thorough = False


def examples(count: int) -> int:
    """Return how many examples hypothesis tries where all tests together try ``count``."""
    return count if thorough else max(10, count // 10)


def tries(count: int) -> Callable[[Any], Any]:
    """Let a test of hypothesis try ``examples(count)``, each as long as it takes, with the fixtures of one test."""
    return settings(
        max_examples=examples(count), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def slow(*values: object) -> object:
    """Mark the values of one parametrisation as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)
