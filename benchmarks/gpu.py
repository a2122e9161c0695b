"""What a GPU benchmark ran on. As a program: prints the GPU's name as a folder name."""

from __future__ import annotations

import os
import re
import subprocess

import torch


def gpu_facts() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "driver": subprocess.run(query, check=False, capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": os.environ.get("GITFAST_COMMIT", "unknown"),
    }


if __name__ == "__main__":
    print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-"))
