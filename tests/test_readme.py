"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gitfast import CheckpointError, hub

ROOT = Path(__file__).parents[1]


def test_the_python_examples_run(monkeypatch, capsys):
    for model in hub.BUNDLED:
        try:
            hub.resolve(model)
        except CheckpointError as error:
            pytest.skip(str(error))
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) >= 3
    assert "five red squares" in capsys.readouterr().out
