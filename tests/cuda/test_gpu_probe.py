"""benchmarks/gpu_probe.cu compiles without a warning or a spill, and says so where there is no GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import BENCHMARKS

SOURCE = BENCHMARKS / "gpu_probe.cu"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The program, and what ptxas said of its kernels."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    program = tmp_path_factory.mktemp("probe") / "gpu_probe"
    options = ["-arch=sm_90a", "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", "-cudart", "static"]
    result = subprocess.run(["nvcc", *options, "-o", program, SOURCE], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program, result.stdout + result.stderr


def test_no_kernel_spills(compiled: tuple[Path, str]) -> None:
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled[1])
    assert len(spills) >= 10
    assert set(spills) == {("0", "0", "0")}


def test_without_a_gpu(compiled: tuple[Path, str], tmp_path: Path) -> None:
    file = tmp_path / "probe.jsonl"
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    result = subprocess.run([compiled[0], file], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert re.fullmatch(r"gpu_probe: needs a GPU: .+\n", result.stderr)
    assert not file.exists()


def test_on_a_gpu(compiled: tuple[Path, str], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a GPU of compute capability 9.0")
    file = tmp_path / "probe.jsonl"
    subprocess.run([compiled[0], file], check=True, timeout=60)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert (rows[0]["kind"], rows[0]["name"]) == ("Probe", "device")
    measured = [row for row in rows if "median" in row]
    assert {row["name"] for row in measured} >= {"launch", "grid_sync", "tagged_data", "graph_node", "read"}
    assert all(0 < row["least"] <= row["median"] <= row["most"] for row in measured if row["unit"] == "GB/s")
    assert all(row["samples"] >= 7 for row in measured)
