"""Facts about the machine of a benchmark, for its JSON and its headline."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from gitfast.platforms import usable_cpus


def cpu_name() -> str:
    """Return the CPU's marketing name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_facts(*packages: str) -> dict[str, Any]:
    """Return the CPU's name, the CPUs this process may use, system, date, and the versions of ``packages``."""
    return {
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def gpu_facts(torch: Any) -> dict[str, Any]:
    """Return the device, the driver, and the commit that GITFAST_COMMIT names."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, check=False, capture_output=True, text=True).stdout.strip()
    except OSError:
        driver = "unknown"
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": os.environ.get("GITFAST_COMMIT", "unknown"),
    }
