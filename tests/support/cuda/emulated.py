"""Builds the emulation of the CUDA kernels (csrc/emulation), loads it, and runs small cases under sanitizers."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pybind11

from support.processes import ENVIRONMENT, PYTHON

ORDERS = ("forward", "reverse", "shuffled", "run_ahead")


def why_not() -> str | None:
    """Name the tools that building needs and this machine lacks."""
    missing = [tool for tool in ("nvcc", "cmake", "ninja") if shutil.which(tool) is None]
    return f"the emulation needs {', '.join(missing)}" if missing else None


# Undefined behaviour is looked for beside races: it takes longest to compile, and there are fewer faults to plant.
_SANITIZE = {"": "", "address": "address", "thread": "thread,undefined"}


def build(source: Path, folder: Path, sanitizer: str = "", *, few_head_dims: bool = False) -> Path:
    """Build the sources at ``source`` in ``folder``; returns the module's file. Raises CalledProcessError.

    ``few_head_dims``: attention for heads of 16 and 64 only, and decoding in bfloat16 with int8 weights only, which
    compiles in half the time.
    """
    configure = ["cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DGITFAST_BINDINGS=OFF", "-DGITFAST_CUDA=off"]
    configure += [
        "-DGITFAST_EMULATION=ON",
        f"-DGITFAST_SANITIZE={_SANITIZE[sanitizer]}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += ["-DCMAKE_CXX_FLAGS=-DGITFAST_FEW_HEAD_DIMS"] if few_head_dims else []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # processes that test side by side build one after another
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A folder that was configured in the same way configures itself again where it must.
        settings, configured = "\n".join(map(str, configure)), folder / "configured.txt"
        if not configured.is_file() or configured.read_text(encoding="utf-8") != settings:
            subprocess.run(configure, check=True, capture_output=True, text=True)
            configured.write_text(settings, encoding="utf-8")
        build = ["cmake", "--build", folder, "--target", "_emulation"]
        subprocess.run(build, check=True, capture_output=True, text=True)
    (module,) = folder.glob("_emulation*.so")
    return module


def replace_source(built: Path, source: Path, changed: Path) -> Path:
    """Link the emulation in the folder ``built`` anew, with ``changed`` instead of ``source``, beside ``changed``.

    Compiles one file, without a sanitizer. Raises CalledProcessError.
    """
    commands = json.loads((built / "compile_commands.json").read_text(encoding="utf-8"))
    outputs = [
        c["output"] for c in commands if {"gitfast_emulated.dir", "_emulation.dir"} & set(Path(c["output"]).parts)
    ]
    (command,) = (c for c in commands if Path(c["file"]) == source)
    words, new_object, module = shlex.split(command["command"]), changed.with_suffix(".o"), changed.with_suffix(".so")
    compiler = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(new_object), str(changed)
    objects = [new_object if output == command["output"] else output for output in outputs]
    for run in (words, [*compiler, "-shared", "-pthread", "-o", module, *objects]):
        subprocess.run(run, cwd=command["directory"], check=True, capture_output=True, text=True)
    return module


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_emulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runtime_of(sanitizer: str) -> str | None:
    """Return the libraries to load before Python for a module built with ``sanitizer``; None without them."""
    names = {"address": "libasan.so", "thread": "libtsan.so"}
    compiler = os.environ.get("CXX", "c++")
    found = []
    for name in (names[sanitizer], "libstdc++.so.6"):  # the second, or the first exception ends the process
        query = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
        found.append(query.stdout.strip())
    return " ".join(found) if all(map(os.path.isabs, found)) else None


class SmallCases:
    """A process that runs small_cases.py on modules built with ``sanitizer``, or without one where it is "".

    Messages go to files in ``folder``.
    """

    def __init__(self, sanitizer: str, folder: Path) -> None:
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        environment["LD_PRELOAD"] = (runtime_of(sanitizer) or "") if sanitizer else ""
        environment |= {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
        command = [*PYTHON, "-m", "support.cuda.small_cases", sanitizer]
        self._log, self._own_log = folder / f"{sanitizer}.log", folder / f"{sanitizer}-process.log"
        with self._own_log.open("w") as messages:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True, env=environment
            )

    def run(self, module: Path, kernel: str) -> tuple[int, str]:
        """The exit code, 0 where all results are right, and what was said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its own messages say why
            print(module, kernel, self._log, sep="\t", file=self._process.stdin, flush=True)
        if code := self._process.stdout.readline():
            return int(code), self._log.read_text(encoding="utf-8", errors="replace")
        return 1, self._own_log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self._process.communicate()
