"""The test program for devices (csrc/tests/cuda_test.cu) on the host: what it says of the kernels holds without one."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_the_program_for_devices(emulation_file: Path) -> None:
    program = "gitfast_cuda_test_emulated"
    build = ["cmake", "--build", emulation_file.parent, "--target", program]
    built = subprocess.run(build, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    run = subprocess.run([emulation_file.parent / program], check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    cases = {line.split()[0] for line in run.stdout.splitlines()}
    assert cases >= {"add_layer_norm", "prefix_attention", "linear", "norm_linear", "head_select"}
    assert cases >= {"advance_search", "persistent_decode"}
    assert "skipped" not in run.stdout
