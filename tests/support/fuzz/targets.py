"""All targets by name. A target is made in an empty folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from support.fuzz import call_targets, checkpoint_targets, data_targets, media_targets
from support.fuzz.loop import Target

TARGETS: dict[str, Callable[[Path], Target]] = {
    **checkpoint_targets.TARGETS,
    **media_targets.TARGETS,
    **{name: make for name, make in data_targets.TARGETS.items() if "parquet" not in name or find_spec("pyarrow")},
    **call_targets.TARGETS,
}
if find_spec("fastapi"):
    from support.fuzz import serve_targets

    TARGETS |= serve_targets.TARGETS
