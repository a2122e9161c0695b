"""The fine-tuning example runs and learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import EXAMPLES

PROGRAM = EXAMPLES / "finetune.py"


@pytest.mark.slow
def test_a_few_steps_teach_something(tmp_path: Path) -> None:
    command = [sys.executable, PROGRAM, "--steps", "60", "--folder", tmp_path / "finetuned"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250).stdout
    accuracy = {line.split(":")[0]: line.split("new words ")[1] for line in output.splitlines() if "new words" in line}
    assert accuracy["before"].startswith("0%")
    assert not accuracy["after"].startswith("0%"), output
    assert (tmp_path / "finetuned" / "model.safetensors").is_file()
