"""How much memory a CPU engine takes: python benchmarks/memory.py [--shape git-base] [--json FILE]

Weights are made one tensor at a time as the engine asks for them, so that what is resident beyond the interpreter is
the engine: at its peak while loading, and while captioning. Each dtype runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import mmap
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np


def peak_mb() -> float:
    """The most that has been resident so far (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e3
    raise OSError("/proc/self/status has no VmHWM")


class RandomWeights(Mapping):
    """float32 tensors that exist only while somebody looks at them."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        pages = mmap.mmap(-1, 4 * int(np.prod(shape)))  # as from a file: given back whole, and not to the heap
        values = np.frombuffer(pages, np.float32).reshape(shape)
        np.random.default_rng(0).standard_normal(dtype=np.float32, out=values)
        values *= 0.02
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def measure(dtype: str, config: dict, shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    from gitfast.checkpoints.config import GitConfig
    from gitfast.engines.cpu import CpuEngine
    from gitfast.types import GenerationOptions

    before = peak_mb()
    engine = CpuEngine.from_weights(GitConfig.from_dict(config), RandomWeights(shapes), dtype=dtype)
    loaded = peak_mb()
    size, frames = engine.config.vision_config.image_size, engine.config.num_image_with_embedding
    pixels = np.zeros((1, *([frames] if frames else []), 3, size, size), np.float32)
    engine.generate(engine.encode(pixels), [[engine.config.bos_token_id]], GenerationOptions(max_new_tokens=20))
    weights = engine.nbytes / 1e6
    largest = max(np.prod(shape) for shape in shapes.values()) * 4 / 1e6
    return {
        "dtype": dtype,
        "weights_mb": weights,
        "loading_mb": loaded - before,
        "captioning_mb": peak_mb() - before,
        "largest_tensor_mb": float(largest),  # read as float32 while it is packed
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="git-base")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    import torch
    import transformers
    from captioners import SHAPES

    from gitfast.bench.machine import machine_facts

    config = transformers.GitConfig(**SHAPES[arguments.shape])
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in transformers.GitForCausalLM(config).state_dict().items()}
    request = {"config": config.to_dict(), "shapes": shapes}
    rows = []
    for dtype in ("float32", "bfloat16", "int8"):
        program = [sys.executable, __file__, "--measure", dtype]
        output = subprocess.run(
            program, input=json.dumps(request), text=True, check=True, stdout=subprocess.PIPE
        ).stdout
        rows.append(json.loads(output))
        print("{dtype}: weights {weights_mb:.0f} MB, peak {loading_mb:.0f} MB while loading (the largest tensor is "
              "{largest_tensor_mb:.0f} MB), {captioning_mb:.0f} MB after a caption".format(**rows[-1]))  # fmt: skip
    if arguments.json:
        result = {"benchmark": "memory", "machine": machine_facts("numpy"), "shape": arguments.shape, "results": rows}
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        given = json.load(sys.stdin)
        print(json.dumps(measure(sys.argv[2], given["config"], {n: tuple(s) for n, s in given["shapes"].items()})))
    else:
        main()
