"""Builds the emulation of the CUDA kernels (csrc/emulation) and loads it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent.parent
ORDERS = ("forward", "reverse", "shuffled", "run_ahead")


def why_not() -> str | None:
    """What building needs and this machine lacks."""
    missing = [tool for tool in ("nvcc", "cmake", "ninja") if shutil.which(tool) is None]
    return f"the emulation needs {', '.join(missing)}" if missing else None


def build(source: Path, folder: Path) -> Path:
    """Build the sources at ``source`` in ``folder``; returns the module's file. Raises CalledProcessError."""
    configure = ["cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DGITFAST_BINDINGS=OFF", "-DGITFAST_CUDA=off"]
    configure += ["-DGITFAST_EMULATION=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", folder, "--target", "_emulation"]):
        subprocess.run(command, check=True, capture_output=True, text=True)
    (module,) = folder.glob("_emulation*.so")
    return module


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_emulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
