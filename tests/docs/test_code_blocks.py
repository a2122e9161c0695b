"""Every code block of the README and the pages runs as it stands, unless a comment above it says why it cannot."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.processes import ENVIRONMENT, PYTHON

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<note><!--[^>]*-->\n+)?^```(?P<language>python|sh)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
# An installed package does not install itself again, and nothing is fetched.
SKIPPED_LINES = re.compile(
    r"^(pip install .*|gitfast .*--model (base|large|microsoft)\S*.*|gitfast serve.*|curl .*)$", re.MULTILINE
)
TIMEOUT_S = 300


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [m["code"] for m in found if m["language"] == language and "not run:" not in (m["note"] or "")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The ``gitfast`` command of the package that is tested, and nowhere to download from."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command, program in (("gitfast", f'"{sys.executable}" -m gitfast'), ("python", f'"{sys.executable}"')):
        script = folder / command
        script.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    paths = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return ENVIRONMENT | {"PATH": paths, "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_of_a_page_run_in_order(page, environment):
    program = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [*PYTHON, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name)
def test_commands_of_a_page_run(page, environment, tmp_path):
    """In a copy of the examples and models, so that what they write is not left in the checkout."""
    for folder in ("examples", "models"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    commands = "\n".join(SKIPPED_LINES.sub("", block.replace("\\\n", " ")) for block in blocks(page, "sh"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{commands}\n{done.stderr[-2000:]}"
