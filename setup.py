"""Build ``gitfast._C`` with CMake and Ninja, and put the bundled checkpoints into the package.

Environment: ``GITFAST_CUDA`` (auto: for ``CMAKE_CUDA_ARCHITECTURES``, else for the GPUs found here; on: for those,
else for all that are supported; off), ``GITFAST_WERROR`` (on: stop at warnings), ``CMAKE_ARGS`` (more
arguments for CMake), and whatever CMake itself reads (``CXX``, ``CUDACXX``, ``CMAKE_CXX_COMPILER_LAUNCHER``,
``CMAKE_BUILD_PARALLEL_LEVEL``).
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cmake"


class BuildExtension(build_ext):
    """Runs CMake in place of the compiler calls of setuptools."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        BUILD.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
            # An isolated build's ninja is gone when the next one starts, so never trust the cached path.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DGITFAST_CUDA={os.environ.get('GITFAST_CUDA', 'auto')}",
            f"-DGITFAST_WERROR={os.environ.get('GITFAST_WERROR', 'off')}",
        ]
        if architectures := os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(BUILD), "--target", "_C"], check=True)


class BuildPython(build_py):
    """Adds ``models/`` to the package as ``gitfast/models/``."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in sorted(path for path in (ROOT / "models").glob("*") if path.is_dir()):
                shutil.copytree(folder, Path(self.build_lib, "gitfast", "models", folder.name), dirs_exist_ok=True)


class BuildWheel(bdist_wheel):
    """Adds a bill of materials (CycloneDX) of the compiled module to the wheel, as PEP 770 has it."""

    def write_wheelfile(self, folder: str, *args: str) -> None:
        super().write_wheelfile(folder, *args)
        made_of = BUILD / "components.tsv"
        if not made_of.is_file():  # an editable wheel is written before its module is built
            return
        name, version = self.distribution.get_name(), self.distribution.get_version()
        # CMakeLists.txt writes what went into the module.
        parts = [line.split("\t") for line in made_of.read_text().splitlines()]
        tools = [{"type": "application", "name": part, "version": of} for kind, part, of, *_ in parts if kind == "tool"]
        components = [
            {"type": kind, "name": part, "version": of, "purl": purl, "licenses": [{"license": {"name": licence}}]}
            for kind, part, of, *rest in parts
            if kind != "tool"
            for licence, purl in [rest]
        ]
        bill = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "component": {
                    "type": "library",
                    "name": name,
                    "version": version,
                    "purl": f"pkg:pypi/{name}@{version}",
                    "licenses": [{"license": {"id": "MIT"}}],
                },
                "tools": {"components": tools},
            },
            "components": components,
        }
        sboms = Path(folder, "sboms")
        sboms.mkdir(exist_ok=True)
        (sboms / "gitfast.cdx.json").write_text(json.dumps(bill, indent=1) + "\n")


class SourceDistribution(sdist):
    """Gives every file the time of ``SOURCE_DATE_EPOCH``, if it is set: equal sources then make equal archives."""

    def make_archive(self, base_name: str, format: str, root_dir=None, base_dir=None, owner=None, group=None) -> str:
        if "SOURCE_DATE_EPOCH" not in os.environ or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        time = int(os.environ["SOURCE_DATE_EPOCH"])

        def uniform(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = time, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        path = Path(f"{base_name}.tar.gz")
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=time) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive,
        ):
            archive.add(base_dir, filter=uniform)  # in the order of names
        return str(path)


setup(
    ext_modules=[Extension("gitfast._C", [])],
    cmdclass={
        "build_ext": BuildExtension,
        "build_py": BuildPython,
        "bdist_wheel": BuildWheel,
        "sdist": SourceDistribution,
    },
)
