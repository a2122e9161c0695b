"""No kernel touches memory outside its arrays: every array here ends, or begins, at a page that faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.paths import ROOT

PROGRAM = ROOT / "tests" / "support" / "guarded.py"


@pytest.mark.parametrize("side", ["before", "after"])
def test_arrays_at_a_protected_page(isa, side):
    result = subprocess.run([sys.executable, str(PROGRAM), isa, side], timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, f"exit {result.returncode} after:\n{result.stdout[-500:]}\n{result.stderr[-2000:]}"
    assert result.stdout.endswith("done\n")


def test_the_protected_page_faults():
    """Without this, a guard that guards nothing would pass."""
    program = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import guarded; guarded.read_outside()"
    result = subprocess.run([sys.executable, "-P", "-c", program], timeout=60, capture_output=True)
    assert result.returncode < 0
