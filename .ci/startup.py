"""Checks that starting is fast: the import of gitfast, and one caption as a whole process. The best of five counts.

Run with the Python of an environment that holds gitfast; a busy machine may slow some of the five, not all.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

IMPORT_SECONDS, CAPTION_SECONDS = 0.35, 1.5
FORBIDDEN = ("torch", "transformers", "av")


def import_seconds() -> float:
    """What ``-X importtime`` says of gitfast; the modules of other frameworks must not appear."""
    command = [sys.executable, "-X", "importtime", "-c", "import gitfast"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    lines = [line.split("|") for line in report.splitlines() if line.count("|") == 2]
    modules = {name.strip(): cumulative.strip() for _, cumulative, name in lines}
    if found := [name for name in FORBIDDEN if name in modules]:
        sys.exit(f"import gitfast imports {', '.join(found)}")
    return int(modules["gitfast"]) / 1e6


def caption_seconds() -> float:
    """One bundled image, from starting the process to its end."""
    image = sorted(Path("examples/images").glob("*.png"))[0]
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("gitfast"), "caption", image], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def check(name: str, measure: Callable[[], float], limit: float) -> None:
    best = min(measure() for _ in range(5))
    print(f"{name}: {best:.2f} s (limit {limit} s)")
    if best > limit:
        sys.exit(f"{name} takes too long")


check("import gitfast", import_seconds, IMPORT_SECONDS)
check("gitfast caption", caption_seconds, CAPTION_SECONDS)
