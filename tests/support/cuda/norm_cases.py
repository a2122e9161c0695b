"""Residual + bias + LayerNorm: inputs, the truth in float64, and the comparison. Device and emulation share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from gitfast.ops import reference

# Half the distance of neighbouring numbers, relative to them: the error of one rounding.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# The error that sums in float32 may add, relative to the largest value.
SUMS = 2e-6


@dataclass
class Case:
    """One call's tensors; ``out`` is full of NaN."""

    x: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    gamma: torch.Tensor
    beta: torch.Tensor
    out: torch.Tensor
    eps: float = 1e-5

    def run(self, kernel: Callable[..., None]) -> torch.Tensor:
        kernel(**vars(self))
        return self.out

    def truth(self) -> torch.Tensor:
        """float64 (R, D), on the CPU."""
        given = (self.x, self.gamma, self.beta, self.bias, self.residual)
        x, gamma, beta, bias, residual = (t if t is None else t.cpu().double() for t in given)
        return torch.from_numpy(reference.add_layer_norm(x, gamma, beta, bias=bias, residual=residual, eps=self.eps))

    def error(self) -> float:
        """Largest difference of ``out`` from the truth, in units of what is allowed; NaN counts as infinite.

        Allowed are one rounding to the dtype of ``out``, of each value, and what sums in float32 lose.
        """
        truth = self.truth()
        allowed = ROUNDING[self.out.dtype] * truth.abs() + SUMS * truth.abs().max().clamp(min=1)
        error = ((self.out.cpu().double() - truth).abs() / allowed).max().item()
        return float("inf") if np.isnan(error) else error

    def of_torch(self) -> Case:
        """The same with what torch's own operators give as ``out``."""
        x = self.x
        for added in (self.bias, self.residual):
            if added is not None:
                x = x + added
        return replace(self, out=F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, self.eps))


def make_case(
    rows: int,
    width: int,
    dtype: torch.dtype,
    *,
    bias: bool = True,
    residual: bool = True,
    padding: int = 0,
    offset: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """Random tensors. ``padding``: NaN elements between rows. ``offset``: the mean of x."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, mean: float = 0.0) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) + mean
        if len(shape) == 2 and padding:
            storage = torch.full((shape[0], shape[1] + padding), torch.nan, dtype=torch.float64)
            storage[:, : shape[1]] = values
            return storage.to(device, dtype)[:, : shape[1]]
        return values.to(device, dtype)

    return Case(
        x=random(rows, width, mean=offset),
        bias=random(width) if bias else None,
        residual=random(rows, width) if residual else None,
        gamma=random(width, mean=1.0),
        beta=random(width),
        out=random(rows, width) * torch.nan if not padding else random(rows, width).mul_(torch.nan),
    )
