"""The CUDA kernel of text embeddings on a device."""

from __future__ import annotations

import pytest
import torch

from gitfast import _C

from support.cuda.embed_cases import make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 7, 768, 1000, 1024])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_equals_float64(dtype: torch.dtype, width: int, rows: int) -> None:
    case = make_case(rows, width, dtype, vocabulary=30_522, places=1024, device="cuda")
    case.run(_C.cuda.embed_layer_norm, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert case.error() <= 1


def test_an_id_outside_its_table_makes_its_row_nan() -> None:
    case = make_case(6, 768, torch.bfloat16, device="cuda")
    case.ids[:3] = torch.tensor([-1, 11, -(2**31)])
    case.position_ids[3:5] = torch.tensor([2**31 - 1, 5])
    case.run(_C.cuda.embed_layer_norm, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert case.out[:5].isnan().all()
    assert case.error() <= 1
