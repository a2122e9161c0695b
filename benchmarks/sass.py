"""Count what decides over speed in the machine code of every CUDA kernel; no GPU is needed.

    python benchmarks/sass.py            compares with benchmarks/results/sass.txt, and fails where they differ
    python benchmarks/sass.py --update   writes it

For sm_90a, one line per kernel: instructions, registers and bytes of local memory; memory barriers (MEMBAR) and
invalidations of the nearest cache (CCTL.IVALL), each of which costs as much as a hundred instructions; loads through
the cache of constants, by which no kernel may read what another writes; and, of kernels that start before the one in
front of them has ended, the loads and copies from global memory ahead of their wait for it (ACQBULK) and behind it.
Some of it must hold whatever the table says: ``problems``. Needs nvcc; cuobjdump and nvdisasm come with the CUDA
toolkit or from PyPI (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ptxas

TABLE = Path(__file__).parent / "results" / "sass.txt"
ARCHITECTURE = "90a"
MOST_INSTRUCTIONS = 8000  # 128 KB, the cache of instructions of a multiprocessor
# Kernels whose weights are chosen by the kernel before them.
AFTER_ALL = ("draw_kernel",)
_FUNCTION = re.compile(r"^\s*\.text\.(\S+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_LOADS = ("LDG.", "LDGSTS.", "UBLKCP")
STREAMED = re.compile(r"LDG\..*NA\.128")  # how weights are loaded: load_streaming


@dataclass(frozen=True)
class Kernel:
    """One kernel, by source and name with template arguments."""

    source: str
    name: str
    registers: int
    local_bytes: int  # stack and spills
    code: tuple[str, ...]  # opcodes with modifiers, in order

    def count(self, *beginnings: str) -> int:
        return sum(opcode.startswith(beginnings) for opcode in self.code)

    @property
    def constant_loads(self) -> int:
        return sum(opcode.startswith("LDG") and ".CONSTANT" in opcode for opcode in self.code)

    @property
    def around_wait(self) -> tuple[int, int] | None:
        """Loads from global memory ahead of the wait for the previous kernel and behind it; None without a wait."""
        waits = [i for i, opcode in enumerate(self.code) if opcode.startswith("ACQBULK")]
        if not waits:
            return None
        loads = [i for i, opcode in enumerate(self.code) if opcode.startswith(_LOADS)]
        return sum(i < waits[0] for i in loads), sum(i > waits[0] for i in loads)

    @property
    def streams_weights(self) -> bool:
        return any(STREAMED.match(opcode) for opcode in self.code)


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: on the path, or where their wheels put them."""
    wheels = sorted(Path(sysconfig.get_path("platlib"), "nvidia").glob(f"*/bin/{name}"))
    return shutil.which(name) or next((str(path) for path in reversed(wheels)), None)


def missing() -> list[str]:
    return [name for name in ("nvcc", "cuobjdump", "nvdisasm") if tool(name) is None]


def disassemble(objects: Path) -> str:
    """All code for the GPU in an object file."""
    with tempfile.TemporaryDirectory() as folder:
        extract = [str(tool("cuobjdump")), "-xelf", "all", str(objects.resolve())]
        subprocess.run(extract, check=True, capture_output=True, cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        command = [str(tool("nvdisasm")), "-c", *map(str, cubins)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(listing: str) -> dict[str, tuple[str, ...]]:
    """The opcodes of every function of nvdisasm's listing, padding behind its end left out."""
    code: dict[str, list[str]] = {}
    current: list[str] = []
    for line in listing.splitlines():
        if match := _FUNCTION.match(line):
            current = code.setdefault(match[1], [])
        elif match := _INSTRUCTION.search(line):
            current.append(match[1])
    return {name: tuple(_without_padding(opcodes)) for name, opcodes in code.items()}


def _without_padding(opcodes: list[str]) -> list[str]:
    end = len(opcodes)
    while end and opcodes[end - 1] == "NOP":
        end -= 1
    return opcodes[:end]


def compile_kernels(source: Path) -> list[Kernel]:
    """Compile one source and read its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        objects = Path(folder, source.stem + ".o")
        return kernels_of(source, objects, ptxas.compile_source(source, ARCHITECTURE, objects))


def built_kernels(build: Path, log: Path) -> list[Kernel]:
    """Read the kernels of the objects that CMake has built for this architecture, and what Ninja printed then."""
    printed = re.split(r"^\[\d+/\d+\] Building CUDA object \S+/(\w+)\.cu\.o\n", log.read_text(), flags=re.MULTILINE)
    reports = dict(zip(printed[1::2], printed[2::2], strict=True))
    objects = {path.name.removesuffix(".cu.o"): path for path in build.rglob("*.cu.o")}
    sources = ptxas.sources(ARCHITECTURE)
    return [kernel for source in sources for kernel in kernels_of(source, objects[source.stem], reports[source.stem])]


def kernels_of(source: Path, objects: Path, report: str) -> list[Kernel]:
    """Read the kernels of one object file, and what ptxas said of them."""
    code = {ptxas.demangle(name): opcodes for name, opcodes in parse(disassemble(objects)).items()}
    return [
        Kernel(
            source=source.name,
            name=str(row["kernel"]),
            registers=int(row["registers"]),
            local_bytes=max(int(row["stack"]), int(row["spill_stores"]), int(row["spill_loads"])),
            code=code[str(row["kernel"])],
        )
        for row in ptxas.parse(report)
    ]


def all_kernels(sources: Iterable[Path] | None = None, jobs: int = 2) -> list[Kernel]:
    chosen = list(sources or ptxas.sources())
    with ThreadPoolExecutor(jobs) as pool:
        return [kernel for kernels in pool.map(compile_kernels, chosen) for kernel in kernels]


def problems(kernels: Iterable[Kernel]) -> Iterator[str]:
    """Yield the faults that no kernel may have, whatever the table says."""
    for kernel in kernels:
        where = f"{kernel.source}: {kernel.name}"
        if kernel.local_bytes:
            yield f"{where} uses {kernel.local_bytes} bytes of local memory"
        if strange := [o for o in kernel.code if ".CONSTANT" in o and o.startswith("LDG") and not STREAMED.match(o)]:
            yield f"{where} loads by {strange[0]}: only weights may come through the cache of constants"
        overlaps = kernel.streams_weights and not kernel.name.startswith(AFTER_ALL)
        if overlaps and kernel.around_wait is not None and kernel.around_wait[0] == 0:
            yield f"{where} loads no weights ahead of its wait for the previous kernel"


def warnings(kernels: Iterable[Kernel]) -> Iterator[str]:
    """Yield the kernels whose code the cache of instructions does not hold: slow at first."""
    for kernel in kernels:
        if len(kernel.code) > MOST_INSTRUCTIONS:
            yield f"warning: {kernel.source}: {kernel.name} has {len(kernel.code)} instructions"


def compiler_version() -> str:
    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", text)
    return match[1] if match else "unknown"


def table(kernels: Iterable[Kernel], version: str) -> str:
    lines = [
        f"sm_{ARCHITECTURE}, nvcc {version}; written by python benchmarks/sass.py --update",
        f"{'instructions':>12} {'registers':>9} {'local':>5} {'MEMBAR':>6} {'IVALL':>5} {'constant':>8}"
        f" {'ahead':>5} {'behind':>6}  kernel",
    ]
    source = ""
    for kernel in kernels:
        if kernel.source != source:
            source = kernel.source
            lines.append(source)
        ahead, behind = kernel.around_wait or ("-", "-")
        lines.append(
            f"{len(kernel.code):>12} {kernel.registers:>9} {kernel.local_bytes:>5} {kernel.count('MEMBAR'):>6}"
            f" {kernel.count('CCTL.IVALL'):>5} {kernel.constant_loads:>8} {ahead:>5} {behind:>6}  {kernel.name}"
        )
    return "\n".join(lines) + "\n"


def differences(expected: str, found: str) -> list[str]:
    """Lines that differ; none where another compiler wrote the table."""
    if expected.split("\n", 1)[0] != found.split("\n", 1)[0]:
        return []
    both = (text.splitlines() for text in (expected, found))
    return list(difflib.unified_diff(*both, "committed", "as compiled", lineterm="", n=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.name} instead of comparing with it")
    parser.add_argument("--jobs", type=int, default=2, help="sources compiled at once (default: 2)")
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="read the objects there instead of compiling")
    parser.add_argument("--log", type=Path, metavar="FILE", help="what Ninja printed as it built them")
    arguments = parser.parse_args()
    if absent := missing():
        sys.exit(f"needs {', '.join(absent)}")
    if (arguments.build is None) != (arguments.log is None):
        sys.exit("--build, --log: expected both or neither")
    read = built_kernels(arguments.build, arguments.log) if arguments.build else all_kernels(jobs=arguments.jobs)
    kernels = sorted(read, key=lambda kernel: (kernel.source, kernel.name))
    found = table(kernels, compiler_version())
    wrong = list(problems(kernels))
    for message in (*warnings(kernels), *wrong):
        print(message, file=sys.stderr)
    if arguments.update:
        TABLE.write_text(found, encoding="utf-8")
    else:
        changed = differences(TABLE.read_text(encoding="utf-8"), found)
        print(*changed, sep="\n", end="\n" if changed else "")
        if changed:
            wrong.append("the table differs: see whether that is meant, and write it with --update")
    if wrong:
        sys.exit(wrong[-1])
    print(f"{len(kernels)} kernels")


if __name__ == "__main__":
    main()
