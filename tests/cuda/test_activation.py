"""The CUDA kernel of bias and activation."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.cuda import emulated
from support.cuda.activation_cases import FUNCTIONS, make_case
from support.cuda.kernels import Kernels, every_order
from support.tiers import slow, tries

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", [1, 7, slow(64), 768, slow(1000), 2056, slow(3072), slow(4096)])
def test_equals_float64(kernels: Kernels, dtype: torch.dtype, function: str, width: int) -> None:
    for rows in kernels.pick((2,), (1, 197)):
        case = make_case(function, rows, width, dtype, device=kernels.device)
        case.run(kernels)
        assert case.error() <= 1


@tries(40)
@given(
    function=st.sampled_from(FUNCTIONS),
    rows=st.integers(1, 5),
    width=st.integers(1, 600),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    padding=st.integers(0, 9),
    scale=st.sampled_from([0.01, 2.0, 12.0]),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    kernels: Kernels,
    function: str,
    rows: int,
    width: int,
    dtype: torch.dtype,
    bias: bool,
    padding: int,
    scale: float,
    order: str,
    seed: int,
) -> None:
    kernels.set_order(order, seed=seed)
    case = make_case(
        function, rows, width, dtype, bias=bias, padding=padding, scale=scale, seed=seed, device=kernels.device
    )
    case.run(kernels)
    assert case.error() <= 1
    if padding and rows > 1:
        between = case.out.as_strided((rows - 1, padding), case.out.stride(), width)
        assert between.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_is_as_close_to_float64_as_torch(kernels: Kernels, function: str, dtype: torch.dtype) -> None:
    case = make_case(function, 20, 768, dtype, device=kernels.device)
    case.run(kernels)
    assert case.error() <= max(1, case.of_torch().error())


@every_order
@pytest.mark.parametrize("function", FUNCTIONS)
def test_output_may_be_the_input(kernels: Kernels, function: str) -> None:
    for rows, dtype, padding in kernels.pick([(3, torch.float16, 0)], [(70_000, torch.bfloat16, 8)]):
        case = make_case(function, rows, 96, dtype, padding=padding, device=kernels.device)
        expected = case.run(kernels).clone()
        case.out = case.x
        assert torch.equal(case.run(kernels), expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_float16_value(kernels: Kernels, function: str) -> None:
    case = make_case(function, 1, 1 << 16, torch.float16, bias=False, device=kernels.device)
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16, device=kernels.device).view(torch.float16)
    case.x[0], case.out = values, torch.full_like(case.x, torch.nan)
    case.run(kernels)
    finite = values.isfinite()
    assert torch.isnan(case.out[0, values.isnan()]).all()
    assert case.out[0, values == torch.inf] == torch.inf
    case.x, case.out = case.x[:, finite], case.out[:, finite]
    assert case.error() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(7)}, r"bias: expected shape \(D=8,\), got \(7,\)"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "bias: expected dtype float32, got float16"),
        ({"out": torch.zeros(3, 8)}, r"out: expected shape \(R=2, D=8\), got \(3, 8\)"),
        ({"out": torch.zeros(8).expand(2, 8)}, "out: its rows overlap"),
        ({"x": torch.zeros(8, 2).T}, "x: the elements of a row are strided"),
        ({"x": torch.zeros(2, 0), "bias": None, "out": torch.zeros(2, 0)}, "x: expected rows of 1 to"),
        ({"x": torch.zeros(2, 8).int(), "bias": None, "out": torch.zeros(2, 8).int()}, "x: expected float32, float16"),
    ],
)
def test_bad_arguments_are_named(emulation: ModuleType, change: dict[str, object], message: str) -> None:
    case = make_case("bias_gelu", 2, 8, torch.float32)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        case.run(emulation)
