"""The fast tier compares git-base; the other published shapes are slow."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and "[git-base at full size]" not in item.name:
            item.add_marker(pytest.mark.slow)
