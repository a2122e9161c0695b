"""Checks what the objects of the instruction sets export: one table each, and nothing weak.

A weak symbol (an inline function or template of a header, not inlined) may be chosen by the linker to serve the whole
program, and code compiled for AVX-512 would then run on an older CPU. Usage: check_symbols.py kernels_avx2.o ...
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WEAK = frozenset("VvWwu")
UNDEFINED = "U"


def problems(path: Path) -> list[str]:
    """List the faults in the symbols of one object file."""
    listing = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
    symbols = [line[17:].split(" ", 1) for line in listing.splitlines()]  # after the address: type, name
    found = [f"{path.name}: weak symbol {name}" for kind, name in symbols if kind in WEAK]
    exported = [name for kind, name in symbols if kind.isupper() and kind != UNDEFINED and kind not in WEAK]
    if len(exported) != 1 or not exported[0].endswith("Kernels"):
        found.append(f"{path.name}: expected one exported table of kernels, got {exported}")
    return found


def main(arguments: list[str]) -> int:
    found = [problem for argument in arguments for problem in problems(Path(argument))]
    print("\n".join(found) if found else f"{len(arguments)} objects: no weak symbols")
    return 1 if found or not arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
