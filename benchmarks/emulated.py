"""Runs gitfast's command or a program of ours as if there were a GPU: by emulated kernels, on a tiny model.

    python benchmarks/emulated.py --build
    python benchmarks/emulated.py bench caption --device cuda ...
    python benchmarks/emulated.py benchmarks/refill_cuda.py ...

For rehearsals of gpu.sh: times mean nothing. Needs nvcc's headers, cmake and ninja.
"""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import torch  # noqa: E402

from gitfast.bench import captioners, cuda_cases, devices, machine, shapes  # noqa: E402
from gitfast.bench.case import Case, Operands  # noqa: E402
from gitfast.bench.ceilings import Ceilings, Gemm  # noqa: E402
from gitfast.bench.cpu_clock import seconds  # noqa: E402
from gitfast.checkpoints.published import SHAPES  # noqa: E402
from gitfast.cli import main as command  # noqa: E402
from gitfast.ops import cuda  # noqa: E402

from support.cuda import emulated  # noqa: E402
from support.tiny_bench import TINY  # noqa: E402

FACTS = {"name": "emulation", "capability": "9.0"}
MODEL = dataclasses.replace(TINY, hidden_size=128, intermediate_size=256)  # heads of 64: all kernels take them


class HostClock:
    """Stands for ``CudaClock``."""

    cache_bytes = 0

    def __init__(self, *_: object) -> None: ...

    def ceilings(self, rounds: int) -> Ceilings:
        return Ceilings("copy", 1.0, {dtype: Gemm(1.0, "nobody") for dtype in ("float32", "bfloat16")})

    def copies(self, case: Case) -> int:
        return 1

    def prepare(self, name: str, copies: Sequence[Operands], cache: str) -> Callable[[], float]:
        call = copies[0].sides[name].call
        return lambda: seconds(call)


def emulate(kernels: Any) -> None:
    """Put the emulation wherever the benchmarks ask for a device."""
    for name in SHAPES:
        frames = SHAPES[name].num_image_with_embedding
        SHAPES[name] = dataclasses.replace(MODEL, num_image_with_embedding=frames and 2)
    shapes.IMAGES, shapes.BEAMS = (1, 2), (1, 3)
    cuda._kernels, cuda._stream = lambda _: kernels, lambda _: 0
    devices._check_cuda = lambda _: None
    devices.CudaClock = HostClock
    devices.gpu_facts = machine.gpu_facts = lambda _: FACTS

    def cases(torch: Any, compiled: bool) -> tuple[cuda_cases.Context, HostClock, dict[str, Any]]:
        return cuda_cases.Context(kernels, torch, torch.Generator().manual_seed(0), "cpu"), HostClock(), {"gpu": FACTS}

    devices._cuda = cases
    captioners.device_of = lambda device: "cpu"
    torch.cuda.synchronize = lambda *_: None


def main(arguments: list[str]) -> int:
    if reason := emulated.why_not():
        sys.exit(reason)
    module = emulated.build(ROOT, ROOT / "build" / "emulation")
    if arguments == ["--build"]:
        return 0
    emulate(emulated.load(module))
    if arguments[0] == "bench":
        return command(arguments)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
