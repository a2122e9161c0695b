"""Measure the memory of a CPU engine: python benchmarks/memory.py [--model git-base] [--json FILE]

Weights are made one tensor at a time as the engine asks for them, so that what is resident beyond the interpreter is
the engine: at its peak while loading, and while captioning. Each dtype runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

from gitfast.bench.machine import machine_facts
from gitfast.bench.report import check_writable
from gitfast.bench.workload import RandomWeights
from gitfast.checkpoints.checkpoint import expected_tensors
from gitfast.checkpoints.published import SHAPES
from gitfast.engines.cpu import CpuEngine
from gitfast.types import GenerationOptions

DTYPES = ("float32", "bfloat16", "int8")


def peak_mb() -> float:
    """Return the peak resident memory so far (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6  # in KiB, whatever it says
    raise OSError("/proc/self/status has no VmHWM")


class MappedWeights(RandomWeights):
    """Tensors in pages of their own, as if read from a file: given back whole, and not to the heap."""

    def __getitem__(self, name: str) -> np.ndarray:
        values = super().__getitem__(name)
        mapped = np.frombuffer(mmap.mmap(-1, values.nbytes), np.float32).reshape(values.shape)
        mapped[:] = values
        return mapped


def measure(model: str, dtype: str) -> dict[str, object]:
    """Measure in this process, which has done nothing else."""
    config, before = SHAPES[model], peak_mb()
    engine = CpuEngine.from_weights(config, MappedWeights(config), dtype=dtype)
    loaded = peak_mb()
    size, frames = config.vision_config.image_size, config.num_image_with_embedding
    pixels = np.zeros((1, *([frames] if frames else []), 3, size, size), np.float32)
    engine.generate(engine.encode(pixels), [[config.bos_token_id]], GenerationOptions(max_new_tokens=20))
    return {
        "dtype": dtype,
        "weights_mb": engine.nbytes / 1e6,
        "loading_mb": loaded - before,
        "captioning_mb": peak_mb() - before,
        # Read as float32 while it is packed.
        "largest_tensor_mb": max(map(math.prod, expected_tensors(config).values())) * 4 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="git-base", choices=SHAPES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=DTYPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.model, arguments.measure)))
        return
    if arguments.json:
        check_writable("json", arguments.json)
    rows = []
    for dtype in DTYPES:
        program = [sys.executable, __file__, "--model", arguments.model, "--measure", dtype]
        rows.append(json.loads(subprocess.run(program, text=True, check=True, stdout=subprocess.PIPE).stdout))
        print("{dtype}: weights {weights_mb:.0f} MB, peak {loading_mb:.0f} MB while loading (the largest tensor is "
              "{largest_tensor_mb:.0f} MB), {captioning_mb:.0f} MB after a caption".format(**rows[-1]))  # fmt: skip
    if arguments.json:
        result = {"benchmark": "memory", "machine": machine_facts("numpy"), "model": arguments.model, "results": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
