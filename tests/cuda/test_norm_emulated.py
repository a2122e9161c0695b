"""The CUDA LayerNorm kernel, thread by thread on the host."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.cuda import emulated
from support.cuda.norm_cases import make_case

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 768, 1000, 1024, 1025, 3072, 4096])
def test_equals_float64(emulation: ModuleType, order: str, dtype: torch.dtype, width: int) -> None:
    case = make_case(2, width, dtype)
    case.run(emulation.add_layer_norm)
    assert case.error() <= 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 600),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    residual=st.booleans(),
    padding=st.integers(0, 9),
    offset=st.sampled_from([0.0, 30.0]),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    emulation: ModuleType,
    rows: int,
    width: int,
    dtype: torch.dtype,
    bias: bool,
    residual: bool,
    padding: int,
    offset: float,
    order: str,
    seed: int,
) -> None:
    emulation.set_order(order, seed=seed)
    case = make_case(rows, width, dtype, bias=bias, residual=residual, padding=padding, offset=offset, seed=seed)
    case.run(emulation.add_layer_norm)
    # About a mean of 30 in float32 the sums lose as many bits as 30 has.
    assert case.error() <= (1 if offset == 0 else 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_as_close_to_float64_as_torch(emulation: ModuleType, dtype: torch.dtype) -> None:
    case = make_case(20, 768, dtype)
    case.run(emulation.add_layer_norm)
    assert case.error() <= case.of_torch().error() * (2 if dtype == torch.float32 else 1)


def test_output_may_be_an_input(emulation: ModuleType) -> None:
    case = make_case(3, 96, torch.float32)
    truth = case.truth()
    case.out = case.residual
    case.run(emulation.add_layer_norm)
    assert torch.allclose(case.out.double(), truth, atol=1e-5)


def test_a_row_does_not_depend_on_the_others(emulation: ModuleType) -> None:
    case = make_case(4, 200, torch.bfloat16)
    together = case.run(emulation.add_layer_norm).clone()
    case.x, case.residual = case.x[2:3], case.residual[2:3]
    case.out = torch.empty_like(case.x)
    assert torch.equal(case.run(emulation.add_layer_norm)[0], together[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5000), "out": torch.zeros(2, 5000), "gamma": torch.zeros(5000), "beta": torch.zeros(5000),
          "bias": None, "residual": None}, "x: expected rows of 1 to 4096 elements, got 5000"),
        ({"gamma": torch.zeros(7)}, r"gamma: expected shape \(D=8,\), got \(7,\)"),
        ({"residual": torch.zeros(2, 8, dtype=torch.float16)}, "residual: expected dtype float32, got float16"),
        ({"out": torch.zeros(3, 8)}, r"out: expected shape \(R=2, D=8\), got \(3, 8\)"),
        ({"out": torch.zeros(8).expand(2, 8)}, "out: its rows overlap"),
        ({"x": torch.zeros(8, 2).T}, "x: the elements of a row are strided"),
        ({"bias": 3}, "bias: expected an array, got int"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(emulation: ModuleType, change: dict[str, object], message: str) -> None:
    case = make_case(2, 8, torch.float32)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        case.run(emulation.add_layer_norm)
