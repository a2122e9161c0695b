"""Word + position embedding + LayerNorm: inputs, the truth in float64, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gitfast.ops import reference

from support.cuda.norm_cases import ROUNDING, SUMS


@dataclass
class Case:
    """One call's tensors; ``out`` is full of NaN."""

    ids: torch.Tensor
    position_ids: torch.Tensor
    words: torch.Tensor
    positions: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor
    out: torch.Tensor
    eps: float = 1e-12

    def run(self, kernel: Callable[..., None]) -> torch.Tensor:
        kernel(**vars(self))
        return self.out

    def truth(self) -> torch.Tensor:
        """float64 (R, D), on the CPU; rows whose ids lie outside their table are NaN."""
        given = (self.words, self.positions, self.gamma, self.beta)
        tensors = (t.cpu().double() for t in given)
        rows = reference.embed_layer_norm(self.ids.cpu(), self.position_ids.cpu(), *tensors, eps=self.eps)
        return torch.from_numpy(rows)

    def error(self) -> float:
        """Largest difference of ``out`` from the truth, in units of what is allowed.

        Allowed are one rounding to the dtype of ``out``, of each value, and what sums in float32 lose. Infinite where
        one is NaN and the other is not.
        """
        truth, out = self.truth(), self.out.cpu().double()
        if not torch.equal(truth.isnan(), out.isnan()):
            return float("inf")
        truth, out = truth.nan_to_num(), out.nan_to_num()
        allowed = ROUNDING[self.out.dtype] * truth.abs() + SUMS * truth.abs().max().clamp(min=1)
        error = ((out - truth).abs() / allowed).max().item()
        return float("inf") if np.isnan(error) else error


def make_case(
    rows: int,
    width: int,
    dtype: torch.dtype,
    *,
    vocabulary: int = 11,
    places: int = 5,
    padding: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """Random tables and ids. ``padding``: NaN elements between the rows of both tables and of ``out``."""
    generator = torch.Generator().manual_seed(seed)

    def table(count: int, mean: float = 0.0) -> torch.Tensor:
        storage = torch.full((count, width + padding), torch.nan, dtype=torch.float64)
        storage[:, :width] = torch.randn((count, width), generator=generator, dtype=torch.float64) + mean
        return storage.to(device, dtype)[:, :width]

    def ids(count: int) -> torch.Tensor:
        return torch.randint(count, (rows,), generator=generator, dtype=torch.int32).to(device)

    return Case(
        ids=ids(vocabulary),
        position_ids=ids(places),
        words=table(vocabulary),
        positions=table(places),
        gamma=table(1, mean=1.0)[0],
        beta=table(1)[0],
        out=table(rows).mul_(torch.nan),
    )
