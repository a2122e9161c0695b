"""The CUDA kernels of the head and the choice of tokens on a device."""

from __future__ import annotations

import pytest
import torch

from gitfast import _C

from support.cuda.linear_cases import FORMATS
from support.cuda.select_cases import make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("rows", "choices"), [(1, 1), (5, 10), (40, 64)])
@pytest.mark.parametrize("overlap", [False, True])
def test_equals_float64(dtype: torch.dtype, weights: str, rows: int, choices: int, overlap: bool) -> None:
    case = make_case(
        rows, 30522, 768, dtype, _C.cuda.select_workspace, choices=choices, weights=weights, logits=True, draw=True,
        device="cuda",
    )  # fmt: skip
    case.overlap = overlap
    for step in range(3):
        case.step += step
        case.run(_C.cuda.head_select, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        assert case.error() <= 1
