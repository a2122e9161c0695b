"""List registers, spills and shared memory of every CUDA kernel, by ptxas. Fails where one uses local memory.

python benchmarks/ptxas.py [--arch 90a ...] [--log FILE] [--json FILE]

Compiles every kernel for it, or reads what a build has printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
# Sources for architectures with clusters and much shared memory: CMakeLists.txt.
CLUSTERS = {"persistent"}
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USAGE = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def sources(architecture: str = "90a") -> list[Path]:
    """List the sources that are compiled for an architecture."""
    found = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    return [source for source in found if source.stem not in CLUSTERS or architecture in ("90a", "100")]


def compile_source(source: Path, architecture: str, objects: Path) -> str:
    """Compile one source for one architecture to an object file; what ptxas -v says of it."""
    launcher = os.environ.get("CMAKE_CUDA_COMPILER_LAUNCHER") or os.environ.get("CMAKE_CXX_COMPILER_LAUNCHER")
    command = [*([launcher] if launcher else []), os.environ.get("CUDACXX", "nvcc"), "-std=c++17", "-O3", "-Xptxas=-v"]
    command += [f"-I{ROOT / 'csrc'}", f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    done = subprocess.run(
        [*command, "-c", str(source), "-o", str(objects)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{source.name}, sm_{architecture}: nvcc failed\n{done.stderr}")
    return done.stderr


def compile_report(source: Path, architecture: str) -> str:
    """ptxas -v for one source and architecture."""
    with tempfile.TemporaryDirectory() as folder:
        return compile_source(source, architecture, Path(folder, "x.o"))


def parse(report: str) -> list[dict[str, Any]]:
    """One entry per kernel and architecture: registers, static shared memory, stack and spills in bytes."""
    kernels: list[dict[str, Any]] = []
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            kernels.append({"arch": match[2], "kernel": demangle(match[1])})
        elif match := _SPILLS.search(line):
            stack, stores, loads = map(int, match.groups())
            kernels[-1] |= {"stack": stack, "spill_stores": stores, "spill_loads": loads}
        elif match := _USAGE.search(line):
            kernels[-1] |= {"registers": int(match[1]), "shared": int(match[2] or 0)}
    return kernels


def demangle(name: str) -> str:
    """The kernel's name with its template arguments, without namespaces and parameters."""
    text = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()
    text = re.sub(r"\((anonymous namespace|int|bool|gitfast::cuda::\w+)\)(::)?", "", text).removeprefix("void ")
    return text.split("(")[0].replace("gitfast::cuda::", "")


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per kernel: the least and the most over the architectures."""
    kernels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kernels.setdefault(str(row["kernel"]), []).append(row)
    print(f"{'registers':>9}  {'shared':>6}  {'stack':>5}  {'spills':>6}  architectures  kernel")
    for name, of_kernel in sorted(kernels.items()):
        registers, shared, stack = ([row[key] for row in of_kernel] for key in ("registers", "shared", "stack"))
        spills = max(row["spill_stores"] + row["spill_loads"] for row in of_kernel)
        span = f"{min(registers)}-{max(registers)}"
        print(f"{span:>9}  {max(shared):>6}  {max(stack):>5}  {spills:>6}  {len(of_kernel):>13}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", help="as 90a; may be repeated; default: all that are built")
    parser.add_argument("--log", type=Path, help="read the output of a build; compile nothing")
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    if arguments.log:
        rows = parse(arguments.log.read_text(encoding="utf-8", errors="replace"))
    else:
        architectures = arguments.arch or ARCHITECTURES
        built = [(source, architecture) for architecture in architectures for source in sources(architecture)]
        rows = [row for source, arch in built for row in parse(compile_report(source, arch))]
    if not rows:
        sys.exit("no kernel was compiled")
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if spilled := [row for row in rows if row["spill_stores"] or row["spill_loads"] or row["stack"]]:
        sys.exit(f"{len(spilled)} kernels use local memory")


if __name__ == "__main__":
    main()
