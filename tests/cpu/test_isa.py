"""The choice of an instruction set, by the machine and by GITFAST_ISA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gitfast import ops

CPU = Path("/proc/cpuinfo").read_text().split() if sys.platform == "linux" else []


def best() -> str:
    """Return the last, but for Xeons whose AMX cannot be used, and Zen 5, which is known by its AVX-VNNI."""
    last = ops.available_isas()[-1]
    if last != "avx512_bf16_vnni":
        return last
    if "GenuineIntel" in CPU:
        return "avx512_vnni"
    return "avx512_bf16" if "avx_vnni" in CPU else last


def test_the_scalar_kernels_are_always_there():
    assert ops.available_isas()[0] == "scalar"


def test_best_is_chosen_and_the_environment_overrides(monkeypatch):
    monkeypatch.delenv("GITFAST_ISA", raising=False)
    assert ops.choose_isa("") == best()
    for isa in ops.available_isas():
        monkeypatch.setenv("GITFAST_ISA", isa)
        assert ops.choose_isa("") == isa
    assert ops.choose_isa("scalar") == "scalar"


def test_amx_is_asked_for_in_a_fresh_process():
    """Nothing has asked Linux for the tile registers before; whether they come or not, kernels run."""
    program = (
        "import numpy as np; from gitfast import ops; isa = ops.choose_isa('');"
        "w = ops.PackedWeight(np.eye(40, dtype=np.float32), dtype='bfloat16');"
        "x = np.arange(2000, dtype=np.float32).reshape(50, 40) % 200;"
        "assert (ops.linear(x, w, pool=ops.ThreadPool(2)) == x).all(); print(isa)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GITFAST_ISA"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    isa = result.stdout.strip()
    assert isa == best()
    if isa == "amx":
        assert "amx_bf16" in CPU


def test_unknown_names_are_refused_by_the_name_of_their_source(monkeypatch):
    monkeypatch.setenv("GITFAST_ISA", "sse9")
    with pytest.raises(ValueError, match=r"GITFAST_ISA: this machine runs scalar.*; got 'sse9'"):
        ops.choose_isa("")
    other = "avx2" if "neon" in ops.available_isas() else "neon"
    with pytest.raises(ValueError, match=rf"isa: this machine runs scalar.*; got '{other}'"):
        ops.choose_isa(other)
