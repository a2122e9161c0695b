"""Objects compiled for one instruction set export its table alone, and nothing the linker may share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

CHECK = ROOT / "csrc" / "tests" / "check_symbols.py"


def check(*objects: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, CHECK, *objects], capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_isa_objects_of_the_build_export_one_table_and_nothing_weak():
    objects = [path for path in ROOT.glob("build/cmake/**/kernels_*.o") if path.is_file()]
    if not objects:
        pytest.skip("no build tree: run setup.py build_ext --inplace")
    result = check(*objects)
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(not shutil.which("nm") or not shutil.which("g++"), reason="needs nm and g++")
def test_a_weak_symbol_is_found(tmp_path):
    source, built = tmp_path / "kernels_avx2.cpp", tmp_path / "kernels_avx2.o"
    source.write_text(
        "extern const int kKernels; const int kKernels = 1; inline int f(int x) { return x; } int (*g)(int) = f;"
    )
    subprocess.run(["g++", "-c", source, "-o", built], check=True)
    result = check(built)
    assert result.returncode == 1
    assert "weak symbol f(int)" in result.stdout
