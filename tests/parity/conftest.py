"""The fast tier compares git-base, scaled down, with vectors; its full size and other published shapes are slow."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != Path(__file__).parent or not isinstance(item, pytest.Function):
            continue
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "git-base" not in values or "scalar" in values:
            item.add_marker(pytest.mark.slow)
