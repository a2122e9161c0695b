"""The CUDA kernel of text embeddings."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.cuda import emulated
from support.cuda.embed_cases import make_case
from support.cuda.kernels import Kernels, every_order
from support.tiers import slow, tries

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, slow(7), 768, 1000, slow(1024)])
def test_equals_float64(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    tables = kernels.pick({}, {"vocabulary": 30_522, "places": 1024})
    for rows in kernels.pick((3,), (1, 5, 200)):
        case = make_case(rows, width, dtype, **tables, device=kernels.device)
        case.run(kernels.embed_layer_norm)
        assert case.error() <= 1


@tries(30)
@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    vocabulary=st.integers(1, 20),
    places=st.integers(1, 20),
    padding=st.integers(0, 9),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    kernels: Kernels,
    rows: int,
    width: int,
    dtype: torch.dtype,
    vocabulary: int,
    places: int,
    padding: int,
    order: str,
    seed: int,
) -> None:
    kernels.set_order(order, seed=seed)
    case = make_case(
        rows, width, dtype, vocabulary=vocabulary, places=places, padding=padding, seed=seed, device=kernels.device
    )
    case.run(kernels.embed_layer_norm)
    assert case.error() <= 1


@every_order
@pytest.mark.parametrize("ids", [{0: -1}, {1: 11}, {0: -(2**31), 2: 2**31 - 1}], ids=str)
@pytest.mark.parametrize("table", ["ids", "position_ids"])
def test_an_id_outside_its_table_makes_its_row_nan(kernels: Kernels, table: str, ids: dict[int, int]) -> None:
    case = make_case(3, 40, torch.bfloat16, device=kernels.device)
    expected = case.run(kernels.embed_layer_norm).clone()
    for row, value in ids.items():
        getattr(case, table)[row] = value
        expected[row] = torch.nan
    case.out = torch.zeros_like(case.out)
    assert torch.equal(case.run(kernels.embed_layer_norm).nan_to_num(9), expected.nan_to_num(9))


def test_ids_outside_both_tables_make_their_rows_nan(kernels: Kernels) -> None:
    case = make_case(6, 768, torch.bfloat16, device=kernels.device)
    case.ids[:3] = torch.tensor([-1, 11, -(2**31)])
    case.position_ids[3:5] = torch.tensor([2**31 - 1, 5])
    case.run(kernels.embed_layer_norm)
    assert case.out[:5].isnan().all()
    assert case.error() <= 1


def test_is_the_layer_norm_of_the_sum(kernels: Kernels) -> None:
    case = make_case(4, 96, torch.float16, device=kernels.device)
    expected = torch.empty_like(case.out)
    words, positions = case.words[case.ids.long()], case.positions[case.position_ids.long()]
    norm = {"gamma": case.gamma, "beta": case.beta, "eps": case.eps}
    kernels.add_layer_norm(x=words, residual=positions, **norm, out=expected)
    assert torch.equal(case.run(kernels.embed_layer_norm), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(2, dtype=torch.int64)}, "ids: expected dtype int32, got int64"),
        ({"position_ids": torch.zeros(3, dtype=torch.int32)}, r"position_ids: expected shape \(R=2,\), got \(3,\)"),
        ({"positions": torch.zeros(5, 7)}, r"positions: expected shape \(positions, D=8\), got \(5, 7\)"),
        ({"positions": torch.zeros(5, 8).half()}, "positions: expected dtype float32, got float16"),
        ({"words": torch.zeros(0, 8)}, "words: expected at least one row, got none"),
        ({"positions": torch.zeros(0, 8)}, "positions: expected at least one row, got none"),
        ({"gamma": torch.zeros(7)}, r"gamma: expected shape \(D=8,\), got \(7,\)"),
        ({"out": torch.zeros(8).expand(2, 8)}, "out: its rows overlap"),
    ],
)
def test_bad_arguments_are_named(emulation: ModuleType, change: dict[str, object], message: str) -> None:
    case = make_case(2, 8, torch.float32)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        case.run(emulation.embed_layer_norm)


def test_rows_are_not_too_long(emulation: ModuleType) -> None:
    with pytest.raises(ValueError, match="words: expected rows of 1 to 4096 elements, got 5000"):
        make_case(2, 5000, torch.float32).run(emulation.embed_layer_norm)
