"""The cases of ``gitfast bench kernels --device cuda``: what they hand to the kernels gives what float64 gives."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from gitfast.bench import cuda_cases, shapes
from gitfast.bench.case import check

from support.tiny_bench import shrink


@pytest.mark.parametrize("kernel", cuda_cases.KERNELS)
def test_every_side_computes_the_same(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    shrink(monkeypatch)
    monkeypatch.setattr(shapes, "IMAGES", (1, 2))
    monkeypatch.setattr(shapes, "BEAMS", (1, 3))
    context = cuda_cases.Context(emulation, torch, torch.Generator().manual_seed(0), "cpu")
    cases = list(cuda_cases.KERNELS[kernel](context, ["git-base", "git-base-vatex"]))
    assert cases
    for case in cases:
        operands = case.build()
        assert all(check(operands, name, operands.expected()) <= 1 for name in operands.sides)
        assert len(operands.sides) > 1
