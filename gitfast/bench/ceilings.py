"""The rates that no kernel can beat, measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gemm:
    """The fastest large matrix product, and the library that computed it."""

    tflop_per_s: float
    by: str


@dataclass(frozen=True)
class Ceilings:
    """Measured ceilings. ``stream``: "read" on a CPU, "copy" on a GPU; ``gemm``: by dtype of the factors."""

    stream: str
    gb_per_s: float
    gemm: dict[str, Gemm]

    def describe(self) -> str:
        products = ", ".join(f"{d} {g.tflop_per_s:.3g} TFLOP/s ({g.by})" for d, g in self.gemm.items())
        return f"{self.stream} {self.gb_per_s:.1f} GB/s; largest product: {products}"

    def tflop_per_s(self, dtype: str) -> float:
        """Return the ceiling of arithmetic."""
        return self.gemm[self.factors(dtype)].tflop_per_s

    def factors(self, dtype: str) -> str:
        """Return what weights of ``dtype`` are multiplied as: bfloat16, where no product of them was measured."""
        return dtype if dtype in self.gemm else "bfloat16"

    def least_seconds(self, flops: float, num_bytes: float, dtype: str) -> tuple[float, str]:
        """Return the least time that the work can take, and the ceiling that bounds it."""
        memory, compute = num_bytes / self.gb_per_s / 1e9, flops / self.tflop_per_s(dtype) / 1e12
        return (memory, "memory") if memory > compute else (compute, "compute")
