"""Processes of Python that import the package under test, whichever folder they start in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gitfast

TESTS = Path(__file__).parents[1]

# The package under test, wherever it is: not the folder we are in (-P), whose native library may not be built.
PYTHON = [sys.executable, "-P"]
# Streams are buffered, as they are for most users.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "PYTHONPATH": os.pathsep.join([str(Path(gitfast.__file__).parents[1]), str(TESTS)])
}


def run_python(
    code: str,
    *arguments: object,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `code` with `arguments` as `sys.argv[1:]`; return its exit status and what it printed."""
    return subprocess.run(
        [*PYTHON, "-c", code, *map(str, arguments)],
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )
