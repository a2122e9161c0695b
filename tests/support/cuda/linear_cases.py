"""A linear layer of few rows: inputs, the truth in float64, and the comparison. Device and emulation share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gitfast.ops import reference
from gitfast.ops.cuda_weights import TiledWeight

from support.cuda import norm_cases
from support.cuda.norm_cases import ROUNDING

# float16 or bfloat16 inputs, and what the weight is stored as beside them: the same, or 8 bits.
FORMATS = ("same", "int8", "float8")
ACTIVATIONS = tuple(reference.ACTIVATIONS)


@dataclass
class Case:
    """One call's tensors; ``out`` is full of NaN."""

    x: torch.Tensor
    weight: TiledWeight
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    out: torch.Tensor
    activation: str = "none"
    overlap: bool = False

    def run(self, kernel: Callable[..., None]) -> torch.Tensor:
        weight = {"weight": self.weight.data, "weight_scales": self.weight.scales}
        kernel(**(vars(self) | weight))
        return self.out

    def error(self) -> float:
        """Largest difference of ``out`` from the truth, in units of what is allowed; NaN counts as infinite.

        Allowed is one rounding to the dtype of ``out`` and those of float32 sums.
        """
        x, weight = self.x.cpu().double(), self.weight.unpack().cpu().double()
        bias, residual = (t if t is None else t.cpu().double() for t in (self.bias, self.residual))
        truth = torch.from_numpy(reference.linear(x, weight, bias, activation=self.activation, residual=residual))
        size = torch.from_numpy(reference.linear(
            x.abs(), weight.abs(), None if bias is None else bias.abs(),
            residual=None if residual is None else residual.abs(),
        ))  # fmt: skip
        allowed = ROUNDING[self.out.dtype] * truth.abs() + 4e-7 * size + 1e-7
        error = ((self.out.cpu().double() - truth).abs() / allowed).max().item()
        return float("inf") if np.isnan(error) else error


@dataclass
class NormCase:
    """A call that normalises the rows of a case first; ``normalised`` is full of NaN."""

    of: Case
    gamma: torch.Tensor
    beta: torch.Tensor
    normalised: torch.Tensor
    eps: float = 1e-5

    def run(self, kernel: Callable[..., None]) -> tuple[torch.Tensor, torch.Tensor]:
        norm = {name: value for name, value in vars(self).items() if name != "of"}
        self.of.run(lambda **given: kernel(**given, **norm))
        return self.normalised, self.of.out

    def by_two(self, add_layer_norm: Callable[..., None], linear: Callable[..., None]) -> NormCase:
        """Run the same by a kernel for the norm and one for the product, into memory of its own."""
        x, normalised = self.of.x, torch.full_like(self.normalised, torch.nan)
        terms = {"bias": None, "residual": None, "gamma": self.gamma, "beta": self.beta}
        add_layer_norm(x=x, **terms, eps=self.eps, out=normalised)
        product = replace(self.of, x=normalised, out=torch.full_like(self.of.out, torch.nan))
        product.run(linear)
        return replace(self, of=product, normalised=normalised)

    def cancelled(self, norm_linear: Callable[..., None]) -> NormCase:
        """Return the case of the first row with what its norm gives subtracted: only errors of rounding are left.

        These tell sums in another order apart, which the rounding of results hides otherwise.
        """
        residual = None if self.of.residual is None else self.of.residual[:1]
        of = replace(self.of, x=self.of.x[:1], residual=residual, out=self.of.out[:1].clone())
        case = replace(self, of=of, beta=torch.zeros_like(self.beta), normalised=self.normalised[:1].clone())
        return replace(case, beta=-case.run(norm_linear)[0][0], normalised=case.normalised.clone())

    def error(self) -> float:
        """Return the largest error of the norm, and of the product of what the norm gave: see ``Case.error``."""
        given = (self.of.x, None, None, self.gamma, self.beta, self.normalised)
        return max(norm_cases.Case(*given, self.eps).error(), replace(self.of, x=self.normalised).error())


def make_norm_case(
    rows: int, columns: int, depth: int, dtype: torch.dtype, *, padding: int = 0, seed: int = 0, **options: Any
) -> NormCase:
    """Random tensors: see ``make_case``."""
    of = make_case(rows, columns, depth, dtype, padding=padding, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    gamma, beta = (torch.randn(depth, generator=generator).to(of.x) for _ in range(2))
    normalised = torch.full((rows, depth + 8 * padding), torch.nan).to(of.x)[:, :depth]
    return NormCase(of, gamma + 1, beta, normalised)


def make_case(
    rows: int,
    columns: int,
    depth: int,
    dtype: torch.dtype,
    *,
    weights: str = "same",
    bias: bool = True,
    residual: bool = False,
    activation: str = "none",
    padding: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """Random tensors; ``padding``: so many times eight NaN between the rows of x, and so many between those of out."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def spaced(width: int, gap: int) -> torch.Tensor:
        return torch.full((rows, width + gap), torch.nan, device=device, dtype=dtype)[:, :width]

    x = spaced(depth, 8 * padding).copy_(random(rows, depth))
    weight = torch.randn(columns, depth, generator=generator).to(device)
    return Case(
        x=x,
        weight=TiledWeight.pack(weight.to(dtype), None if weights == "same" else weights),
        bias=random(columns) if bias else None,
        residual=random(rows, columns) if residual else None,
        out=spaced(columns, padding),
        activation=activation,
    )
