"""Bias + activation: inputs, the truth in float64, and the comparison. Device and emulation share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gitfast.ops import reference

from support.cuda.norm_cases import ROUNDING

FUNCTIONS = ("bias_gelu", "bias_quick_gelu")


@dataclass
class Case:
    """One call's tensors; ``out`` is full of NaN."""

    function: str
    x: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor

    def run(self, kernels: Any) -> torch.Tensor:
        kernel: Callable[..., None] = kernels.bias_activation
        activation = self.function.removeprefix("bias_")
        kernel(x=self.x, bias=self.bias, activation=activation, out=self.out)
        return self.out

    def sums(self) -> torch.Tensor:
        """x + bias in float64 (R, D), on the CPU."""
        x = self.x.cpu().double()
        return x if self.bias is None else x + self.bias.cpu().double()

    def truth(self) -> torch.Tensor:
        return torch.from_numpy(getattr(reference, self.function)(self.sums()))

    def error(self) -> float:
        """Largest difference of ``out`` from the truth, in units of what is allowed; NaN counts as infinite.

        Allowed are one rounding to the dtype of ``out``, relative to each value, and what the function loses in
        float32: the more, the steeper its tail falls there; and its last digit where erfc or exp are subnormal. The
        exponential that quick_gelu divides by overflows below x = -52.1, and the result is zero.
        """
        truth, dtype, sums = self.truth(), self.out.dtype, self.sums()
        relative = ROUNDING[dtype] + 3e-7 * (1 + sums.square())
        smallest = torch.finfo(dtype).smallest_normal * ROUNDING[dtype] + 2.0**-149 * sums.abs()
        if self.function == "bias_quick_gelu":
            smallest = smallest + torch.where(sums < -52, sums.abs() / torch.finfo(torch.float32).max, 0.0)
        error = ((self.out.cpu().double() - truth).abs() / (relative * truth.abs() + smallest)).max().item()
        return float("inf") if np.isnan(error) else error

    def of_torch(self) -> Case:
        """The same with what torch's own operators give as ``out``."""
        x = self.x if self.bias is None else self.x + self.bias
        return replace(self, out=F.gelu(x) if self.function == "bias_gelu" else x * torch.sigmoid(1.702 * x))


def make_case(
    function: str,
    rows: int,
    width: int,
    dtype: torch.dtype,
    *,
    bias: bool = True,
    padding: int = 0,
    scale: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """Random tensors. ``padding``: NaN elements between rows. ``scale``: the deviation of x."""
    generator = torch.Generator().manual_seed(seed)
    storage = torch.full((rows, width + padding), torch.nan, dtype=torch.float64)
    storage[:, :width] = torch.randn((rows, width), generator=generator, dtype=torch.float64) * scale
    x = storage.to(device, dtype)[:, :width]
    return Case(
        function=function,
        x=x,
        bias=torch.randn(width, generator=generator, dtype=torch.float64).to(device, dtype) if bias else None,
        out=torch.full_like(storage, torch.nan).to(device, dtype)[:, :width],
    )
