"""The CUDA attention kernel on a device."""

from __future__ import annotations

import pytest
import torch

from gitfast import _C
from gitfast.ops.cuda import attention_tiles

from support.cuda.attention_cases import COUNTERS, Case, make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run(case: Case) -> torch.Tensor:
    out = case.run(_C.cuda.prefix_attention, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("prefix", [0, 1, 63, 65, 197, 901])
def test_rows_of_an_image(dtype: torch.dtype, head_dim: int, prefix: int) -> None:
    case = make_case([prefix or 1, 3], prefix, head_dim, dtype, tile_rows=64, device="cuda")
    run(case)
    assert case.error() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("rows", [[1], [5] * 8, [1, 20, 3]], ids=str)
def test_beams_and_questions(dtype: torch.dtype, append: bool, rows: list[int]) -> None:
    text = [1 + (7 * i) % 40 for i in range(sum(rows))]
    case = make_case(rows, 197, 64, dtype, text=text, append=append, heads=12, device="cuda")
    run(case)
    assert case.error() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("splits", [2, 5, 32])
@pytest.mark.parametrize("prefix", [0, 65, 901])
def test_a_split_prefix(dtype: torch.dtype, head_dim: int, splits: int, prefix: int) -> None:
    text = [1 + (7 * i) % 40 for i in range(26)]
    case = make_case([1, 20, 5], prefix, head_dim, dtype, text=text, append=True, device="cuda").split(_C.cuda, splits)
    for _ in range(2):
        case.out.fill_(torch.nan)
        run(case)
        assert case.error() <= 1
    assert not case.workspace[:COUNTERS].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile_rows", [16, 64])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("prefix", [0, 65, 901])
def test_an_int8_prefix(dtype: torch.dtype, tile_rows: int, splits: int, prefix: int) -> None:
    text = [i % 40 for i in range(26)]
    case = make_case([1, 20, 5], prefix, 64, dtype, text=text, tile_rows=tile_rows, device="cuda").quantize()
    result = run(case.split(_C.cuda, splits)).clone()
    assert case.error() <= 1
    assert torch.equal(run(case.dequantize()), result)


def test_a_graph_replays_a_split_prefix() -> None:
    case = make_case([5], 901, 64, torch.bfloat16, text=[3] * 5, heads=12, device="cuda").split(_C.cuda, 8)
    expected = run(case).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(_C.cuda.prefix_attention, torch.cuda.current_stream().cuda_stream)
    for _ in range(100):
        case.out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(case.out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("splits", [1, 4])
def test_is_the_same_every_time_and_in_every_tile(splits: int, dtype: torch.dtype) -> None:
    case = make_case([37, 2], 197, 64, dtype, text=[i % 9 for i in range(39)], heads=12, device="cuda")
    case.split(_C.cuda, splits)
    first = run(case).clone()
    for _ in range(20):
        assert torch.equal(run(case), first)
    case.tile_rows, case.tiles = 64, attention_tiles(case.images, 64).cuda()
    assert torch.equal(run(case), first)
