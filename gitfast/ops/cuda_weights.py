"""Weights in the layout of the CUDA kernels for few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

_TILE_COLUMNS, _STEP_BYTES = 8, 64
_LARGEST = {"int8": 127.0, "float8": torch.finfo(torch.float8_e4m3fn).max}


@dataclass(frozen=True)
class TiledWeight:
    """A weight (N, K) in tiles of 8 rows of 64 bytes, one after another along K (csrc/cuda/linear.h).

    ``data``: (ceil(N / 8), steps, 8, 64 bytes) of float16, bfloat16, int8, or uint8 with the bits of float8_e4m3fn.
    ``scales``: float32 (N,), what each row is multiplied by; None for weights of 16 bits.
    """

    data: torch.Tensor
    scales: torch.Tensor | None
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: torch.Tensor, dtype: Literal["int8", "float8"] | None = None) -> TiledWeight:
        """Lay out a float16 or bfloat16 weight (N, K), K a multiple of 32, or of 64 for weights of 8 bits.

        ``dtype`` stores it in 8 bits, each row scaled so that its largest magnitude is the largest of that dtype:
        "int8" rounds to the nearest of 255 steps, "float8" to float8_e4m3fn.

        Raises:
            ValueError: the weight or ``dtype`` cannot be taken.
        """
        if weight.ndim != 2 or weight.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"weight: expected a 2-D float16 or bfloat16 tensor, got {_describe(weight)}")
        if dtype is not None and dtype not in _LARGEST:
            raise ValueError(f"dtype: expected 'int8', 'float8' or None, got {dtype!r}")
        N, K = weight.shape
        step = _STEP_BYTES // (weight.element_size() if dtype is None else 1)
        if N == 0 or K == 0 or K % step:
            raise ValueError(f"weight: expected rows of a multiple of {step} elements, got {_describe(weight)}")
        scales = None
        if dtype is not None:
            rows = weight.float()
            largest = rows.abs().amax(dim=1)
            scales = torch.where(largest > 0, largest, 1.0) / _LARGEST[dtype]
            scaled = rows / scales[:, None]
            weight = scaled.round().to(torch.int8) if dtype == "int8" else _bits(scaled)
        padded = torch.nn.functional.pad(weight, (0, 0, 0, -N % _TILE_COLUMNS))
        data = padded.view(-1, _TILE_COLUMNS, K // step, step).transpose(1, 2).contiguous()
        return cls(data, scales, (N, K))

    def unpack(self) -> torch.Tensor:
        """Return the weight as products see it: (N, K) in its dtype, or float32 where it has scales."""
        N, K = self.shape
        rows = self.data.transpose(1, 2).reshape(-1, K)[:N]
        if self.scales is None:
            return rows
        values = rows.view(torch.float8_e4m3fn).float() if rows.dtype == torch.uint8 else rows.float()
        return values * self.scales[:, None]


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float8_e4m3fn).view(torch.uint8)


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
