"""Check that starting is fast: the import of gitfast beside numpy's, and one caption as a whole process, best of five.

Run with the Python of an environment that holds gitfast; a busy machine may slow some of the five, not all.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

IMPORT_SHARE, CAPTION_SECONDS = 0.8, 1.5  # what `import gitfast` may add, as a share of numpy's own import
FORBIDDEN = ("torch", "transformers", "av")


def import_share() -> float:
    """Return the time of `import gitfast` over that of `import numpy`, as -X importtime has them in one process.

    The modules of other frameworks must not appear.
    """
    command = [sys.executable, "-X", "importtime", "-c", "import numpy, gitfast"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    lines = [line.split("|") for line in report.splitlines() if line.count("|") == 2]
    modules = {name.strip(): cumulative.strip() for _, cumulative, name in lines}
    if found := [name for name in FORBIDDEN if name in modules]:
        sys.exit(f"import gitfast imports {', '.join(found)}")
    return int(modules["gitfast"]) / int(modules["numpy"])


def caption_seconds() -> float:
    """Time one bundled image, from the start of the process to its end."""
    image = sorted(Path("examples/images").glob("*.png"))[0]
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("gitfast"), "caption", image], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def check(name: str, measure: Callable[[], float], limit: float, unit: str) -> None:
    best = min(measure() for _ in range(5))
    print(f"{name}: {best:.2f} {unit} (limit {limit})")
    if best > limit:
        sys.exit(f"{name} takes too long")


check("import gitfast", import_share, IMPORT_SHARE, "of numpy's import")
check("gitfast caption", caption_seconds, CAPTION_SECONDS, "s")
