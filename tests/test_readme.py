"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gitfast import CheckpointError
from gitfast.checkpoints import hub

ROOT = Path(__file__).parents[1]


def is_bundled(model: str) -> bool:
    try:
        hub.resolve(model)
    except CheckpointError:
        return False
    return True


def test_the_python_examples_run(monkeypatch, capsys):
    missing = [model for model in hub.BUNDLED if not is_bundled(model)]
    if "git-tiny" in missing:
        pytest.skip("git-tiny is not part of this installation")
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL):
        if not any(f'"{model}"' in block for model in missing):
            exec(block, namespace)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["five red squares", "five"]
    assert any(line.startswith("five red squares 0.") for line in lines), "the best of the labels"
    assert "a-large-orange-square.png a large orange square" in lines, "one of a million"
