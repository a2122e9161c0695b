"""The fast tier compares git-base, scaled down; its full size and the other published shapes are slow."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != Path(__file__).parent or not isinstance(item, pytest.Function):
            continue
        if not hasattr(item, "callspec") or "git-base" not in item.callspec.params.values():
            item.add_marker(pytest.mark.slow)
