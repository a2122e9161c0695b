"""The reader of ptxas reports, and that no kernel spills on the architecture most used."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from support.paths import ROOT
from support.tiers import slow

spec = importlib.util.spec_from_file_location("ptxas", ROOT / "benchmarks" / "ptxas.py")
assert spec is not None
assert spec.loader is not None
ptxas = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ptxas)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
SOURCES = sorted((ROOT / "csrc").glob("*/*.cu"))
FAST = ("embed.cu",)  # nvcc takes half a minute for some others

not_twice = pytest.mark.skipif("CI" in os.environ, reason="CI reads what its build says of all kernels")


def test_a_report_is_read() -> None:
    report = """
ptxas info    : Compiling entry function 'plain_kernel' for 'sm_90a'
ptxas info    : Function properties for plain_kernel
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem
"""
    expected = {"arch": "90a", "kernel": "plain_kernel", "registers": 40, "shared": 512, "stack": 16}
    assert ptxas.parse(report) == [expected | {"spill_stores": 8, "spill_loads": 12}]


@needs_nvcc
@not_twice
@pytest.mark.parametrize(
    "source", [path if path.name in FAST else slow(path) for path in SOURCES], ids=lambda path: path.name
)
def test_no_kernel_uses_local_memory(source: Path) -> None:
    for kernel in ptxas.parse(ptxas.compile_report(source, "90a")):
        assert kernel["stack"] == kernel["spill_stores"] == kernel["spill_loads"] == 0, kernel
