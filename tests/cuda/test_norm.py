"""The CUDA LayerNorm kernel."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.cuda import emulated
from support.cuda.kernels import Kernels, device_only, every_order
from support.cuda.norm_cases import make_case
from support.tiers import slow, tries

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, slow(64), 768, slow(1000), slow(1024), 1025, slow(3072), 4096])
def test_equals_float64(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    for rows in kernels.pick((2,), (1, 3, 197)):
        case = make_case(rows, width, dtype, device=kernels.device)
        case.run(kernels.add_layer_norm)
        assert case.error() <= 1


@tries(60)
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
    kernels: Kernels,
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
    kernels.set_order(order, seed=seed)
    case = make_case(
        rows,
        width,
        dtype,
        bias=bias,
        residual=residual,
        padding=padding,
        offset=offset,
        seed=seed,
        device=kernels.device,
    )
    case.run(kernels.add_layer_norm)
    # About a mean of 30 in float32 the sums lose as many bits as 30 has.
    assert case.error() <= (1 if offset == 0 else 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_as_close_to_float64_as_torch(kernels: Kernels, dtype: torch.dtype) -> None:
    case = make_case(kernels.pick(20, 197), 768, dtype, device=kernels.device)
    case.run(kernels.add_layer_norm)
    # torch's own kernel on a device rounds as well as ours, or better.
    allowed = case.of_torch().error()
    assert case.error() <= kernels.pick(allowed * (2 if dtype == torch.float32 else 1), max(1.0, 2 * allowed))


@pytest.mark.parametrize("padding", [1, 8])
def test_strided_rows_without_bias_and_residual(kernels: Kernels, padding: int) -> None:
    case = make_case(5, 768, torch.bfloat16, device=kernels.device, padding=padding, bias=False, residual=False)
    case.run(kernels.add_layer_norm)
    assert case.error() <= 1


def test_output_may_be_an_input(kernels: Kernels) -> None:
    case = make_case(3, 96, torch.float32, device=kernels.device)
    truth = case.truth()
    case.out = case.residual
    case.run(kernels.add_layer_norm)
    assert torch.allclose(case.out.cpu().double(), truth, atol=1e-5)


def test_a_row_does_not_depend_on_the_others(kernels: Kernels) -> None:
    case = make_case(4, 200, torch.bfloat16, device=kernels.device)
    together = case.run(kernels.add_layer_norm).clone()
    case.x, case.residual = case.x[2:3], case.residual[2:3]
    case.out = torch.empty_like(case.x)
    assert torch.equal(case.run(kernels.add_layer_norm)[0], together[2])


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


@device_only
def test_runs_on_the_given_stream_and_in_a_graph(kernels: Kernels) -> None:
    case = make_case(4, 768, torch.float16, device="cuda")
    case.run(kernels.add_layer_norm)  # loads the kernel, which a capture may forbid
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(kernels.add_layer_norm)
    case.out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert case.error() <= 1


@device_only
def test_is_the_same_every_time(kernels: Kernels) -> None:
    case = make_case(197, 768, torch.bfloat16, device="cuda")
    first = case.run(kernels.add_layer_norm).clone()
    for _ in range(100):
        again = case.run(kernels.add_layer_norm)
        assert torch.equal(again, first)


@device_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_tensors(kernels: Kernels) -> None:
    case = make_case(3, 768, torch.float32, device="cuda:1")
    case.run(kernels.module.add_layer_norm)
    torch.cuda.synchronize(1)
    assert case.error() <= 1
    assert torch.cuda.current_device() == 0


@device_only
def test_arrays_of_the_host_are_refused(kernels: Kernels) -> None:
    case = make_case(2, 8, torch.float32)
    with pytest.raises(ValueError, match="x: expected a CUDA tensor"):
        case.run(kernels.add_layer_norm)
