"""The CUDA LayerNorm kernel on a device."""

from __future__ import annotations

import pytest
import torch

from gitfast import _C

from support.cuda.norm_cases import make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 768, 1000, 1024, 1025, 3072, 4096])
@pytest.mark.parametrize("rows", [1, 3, 197])
def test_equals_float64(dtype: torch.dtype, width: int, rows: int) -> None:
    case = make_case(rows, width, dtype, device="cuda")
    case.run(_C.cuda.add_layer_norm, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert case.error() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_is_as_close_to_float64_as_torch(dtype: torch.dtype) -> None:
    case = make_case(197, 768, dtype, device="cuda")
    case.run(_C.cuda.add_layer_norm, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert case.error() <= max(1, 2 * case.of_torch().error())


@pytest.mark.parametrize("padding", [1, 8])
def test_strided_rows_without_bias_and_residual(padding: int) -> None:
    case = make_case(5, 768, torch.bfloat16, device="cuda", padding=padding, bias=False, residual=False)
    case.run(_C.cuda.add_layer_norm, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert case.error() <= 1


def test_runs_on_the_given_stream_and_in_a_graph() -> None:
    case = make_case(4, 768, torch.float16, device="cuda")
    case.run(_C.cuda.add_layer_norm)  # loads the kernel, which a capture may forbid
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(_C.cuda.add_layer_norm, torch.cuda.current_stream().cuda_stream)
    case.out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert case.error() <= 1


def test_is_the_same_every_time() -> None:
    case = make_case(197, 768, torch.bfloat16, device="cuda")
    first = case.run(_C.cuda.add_layer_norm, torch.cuda.current_stream().cuda_stream).clone()
    for _ in range(100):
        again = case.run(_C.cuda.add_layer_norm, torch.cuda.current_stream().cuda_stream)
        assert torch.equal(again, first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_tensors() -> None:
    case = make_case(3, 768, torch.float32, device="cuda:1")
    case.run(_C.cuda.add_layer_norm)
    torch.cuda.synchronize(1)
    assert case.error() <= 1
    assert torch.cuda.current_device() == 0


def test_arrays_of_the_host_are_refused() -> None:
    case = make_case(2, 8, torch.float32)
    with pytest.raises(ValueError, match="x: expected a CUDA tensor"):
        case.run(_C.cuda.add_layer_norm)
