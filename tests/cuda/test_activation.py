"""The CUDA kernel of bias and activation on a device."""

from __future__ import annotations

import pytest
import torch

from gitfast import _C

from support.cuda.activation_cases import FUNCTIONS, make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", [1, 7, 768, 1000, 2056, 3072, 4096])
@pytest.mark.parametrize("rows", [1, 197])
def test_equals_float64(dtype: torch.dtype, function: str, width: int, rows: int) -> None:
    case = make_case(function, rows, width, dtype, device="cuda")
    case.run(_C.cuda, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert case.error() <= 1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_output_may_be_the_input(function: str) -> None:
    case = make_case(function, 70_000, 96, torch.bfloat16, padding=8, device="cuda")
    expected = case.run(_C.cuda, torch.cuda.current_stream().cuda_stream).clone()
    case.out = case.x
    assert torch.equal(case.run(_C.cuda, torch.cuda.current_stream().cuda_stream), expected)
