"""The CUDA kernel of a linear layer of few rows on a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gitfast import _C

from support.cuda.linear_cases import ACTIVATIONS, FORMATS, make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("rows", [1, 5, 16, 40])
@pytest.mark.parametrize(("columns", "depth"), [(768, 768), (2304, 768), (3072, 768), (768, 3072), (30522, 768)])
def test_equals_float64(dtype: torch.dtype, weights: str, rows: int, columns: int, depth: int) -> None:
    case = make_case(rows, columns, depth, dtype, weights=weights, residual=True, device="cuda")
    case.run(_C.cuda.linear, stream())
    torch.cuda.synchronize()
    assert case.error() <= 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_chain_that_overlaps_equals_one_that_does_not(activation: str) -> None:
    case = make_case(16, 768, 768, torch.bfloat16, activation=activation, device="cuda")
    case.weight.data.mul_(768**-0.5)  # so that values neither grow nor vanish along the chain
    results = []
    for overlap in (False, True):
        x = case.x
        for _ in range(50):
            out = torch.empty_like(case.out)
            replace(case, x=x, out=out, overlap=overlap).run(_C.cuda.linear, stream())
            x = out
        torch.cuda.synchronize()
        results.append(x)
    assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16))


@pytest.mark.parametrize("weights", FORMATS)
def test_a_row_does_not_depend_on_the_others(weights: str) -> None:
    case = make_case(33, 3072, 768, torch.bfloat16, weights=weights, device="cuda")
    together = case.run(_C.cuda.linear, stream()).clone()
    for row in range(0, 33, 4):
        alone = replace(case, x=case.x[row : row + 1], out=torch.empty_like(together[:1]))
        assert torch.equal(alone.run(_C.cuda.linear, stream())[0], together[row])
