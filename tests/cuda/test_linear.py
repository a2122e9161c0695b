"""The CUDA kernels of a linear layer of few rows, and of one whose rows are normalised first."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.cuda import emulated
from support.cuda.kernels import Kernels, device_only, every_order
from support.cuda.linear_cases import ACTIVATIONS, FORMATS, NormCase, make_case, make_norm_case
from support.tiers import tries

DTYPES = [torch.float16, torch.bfloat16]


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 8, 64), (5, 13, 192), (16, 24, 576), (17, 8, 3072)])
def test_equals_float64(
    kernels: Kernels, dtype: torch.dtype, weights: str, rows: int, columns: int, depth: int
) -> None:
    case = make_case(rows, columns, depth, dtype, weights=weights, device=kernels.device)
    case.run(kernels.linear)
    assert case.error() <= 1


@every_order
@pytest.mark.parametrize("columns", [8192, 8201])
def test_many_columns(kernels: Kernels, columns: int) -> None:
    case = make_case(3, columns, 64, torch.bfloat16, weights="int8", activation="gelu", device=kernels.device)
    case.run(kernels.linear)
    assert case.error() <= 1


@tries(60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    steps=st.integers(1, 14),
    dtype=st.sampled_from(DTYPES),
    weights=st.sampled_from(FORMATS),
    bias=st.booleans(),
    residual=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    padding=st.integers(0, 2),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    kernels: Kernels,
    rows: int,
    columns: int,
    steps: int,
    dtype: torch.dtype,
    weights: str,
    bias: bool,
    residual: bool,
    activation: str,
    padding: int,
    order: str,
    seed: int,
) -> None:
    kernels.set_order(order, seed=seed)
    depth = steps * (32 if weights == "same" else 64)
    case = make_case(
        rows, columns, depth, dtype, weights=weights, bias=bias, residual=residual, activation=activation,
        padding=padding, seed=seed, device=kernels.device,
    )  # fmt: skip
    case.run(kernels.linear)
    assert case.error() <= 1
    if padding and rows > 1:
        assert case.out.as_strided((rows - 1, padding), case.out.stride(), columns).isnan().all()


@device_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("rows", [1, 5, 16, 40])
@pytest.mark.parametrize(("columns", "depth"), [(768, 768), (2304, 768), (3072, 768), (768, 3072), (30522, 768)])
def test_the_widths_of_git_base(
    kernels: Kernels, dtype: torch.dtype, weights: str, rows: int, columns: int, depth: int
) -> None:
    case = make_case(rows, columns, depth, dtype, weights=weights, residual=True, device=kernels.device)
    case.run(kernels.linear)
    assert case.error() <= 1


@device_only
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_chain_that_overlaps_equals_one_that_does_not(kernels: Kernels, activation: str) -> None:
    case = make_case(16, 768, 768, torch.bfloat16, activation=activation, device=kernels.device)
    case.weight.data.mul_(768**-0.5)  # so that values neither grow nor vanish along the chain
    results = []
    for overlap in (False, True):
        x = case.x
        for _ in range(50):
            out = torch.empty_like(case.out)
            replace(case, x=x, out=out, overlap=overlap).run(kernels.linear)
            x = out
            results.append(x)
    assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16))


@pytest.mark.parametrize("weights", FORMATS)
def test_a_row_does_not_depend_on_the_others(kernels: Kernels, weights: str) -> None:
    rows, columns, depth = kernels.pick((19, 24, 384), (33, 3072, 768))
    case = make_case(rows, columns, depth, torch.bfloat16, weights=weights, device=kernels.device)
    together = case.run(kernels.linear).clone()
    for row in range(len(together)):
        alone = replace(case, x=case.x[row : row + 1], out=torch.full_like(together[:1], torch.nan))
        assert torch.equal(alone.run(kernels.linear)[0], together[row])


def test_nan_stays_in_its_row(kernels: Kernels) -> None:
    case = make_case(16, 8, 128, torch.float16, device=kernels.device)
    expected = case.run(kernels.linear).clone()
    case.x[7] = torch.nan
    case.run(kernels.linear)
    assert case.out[7].isnan().all()
    assert torch.equal(case.out[torch.arange(16) != 7], expected[torch.arange(16) != 7])


@every_order
def test_the_output_may_be_the_residual(kernels: Kernels) -> None:
    case = make_case(9, 16, 64, torch.bfloat16, residual=True, device=kernels.device)
    expected = case.run(kernels.linear).clone()
    case.out = case.residual
    assert torch.equal(case.run(kernels.linear), expected)


def test_every_value_of_8_bits_is_multiplied_exactly(kernels: Kernels) -> None:
    for dtype in DTYPES:
        for weights, integer in (("int8", torch.int8), ("float8", torch.uint8)):
            case = make_case(1, 256, 64, dtype, weights=weights, bias=False, device=kernels.device)
            case.x[:] = 0
            case.x[0, 0] = 1
            column = torch.arange(256).to(integer)
            case.weight.data[:, 0, :, 0] = column.view(-1, 8).to(kernels.device)
            case.weight.scales[:] = 1
            values = column.view(torch.float8_e4m3fn).float() if weights == "float8" else column.float()
            finite = values.isfinite()
            case.run(kernels.linear)
            out = case.out[0].cpu()
            assert torch.equal(out[finite].float(), values[finite])
            assert out[~finite].isnan().all()


def assert_equal_to_two_kernels(case: NormCase, kernels: Kernels) -> None:
    case.run(kernels.norm_linear)
    assert case.error() <= 1
    for of in (case, case.cancelled(kernels.norm_linear)):
        of.run(kernels.norm_linear)
        twin = of.by_two(kernels.add_layer_norm, kernels.linear)
        assert torch.equal(of.normalised, twin.normalised)
        assert torch.equal(of.of.out, twin.of.out)


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "depth", "weights"), [(1, 768, "same"), (3, 64, "int8"), (4, 1024, "float8")])
def test_norm_linear_equals_two_kernels(
    kernels: Kernels, dtype: torch.dtype, rows: int, depth: int, weights: str
) -> None:
    columns = kernels.pick(25, 2304)
    case = make_norm_case(rows, columns, depth, dtype, weights=weights, activation="gelu", device=kernels.device)
    assert_equal_to_two_kernels(case, kernels)


@tries(40)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 20),
    steps=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    weights=st.sampled_from(FORMATS),
    bias=st.booleans(),
    residual=st.booleans(),
    padding=st.integers(0, 2),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_norm_linear_of_any_shape(
    kernels: Kernels,
    rows: int,
    columns: int,
    steps: int,
    dtype: torch.dtype,
    weights: str,
    bias: bool,
    residual: bool,
    padding: int,
    order: str,
    seed: int,
) -> None:
    kernels.set_order(order, seed=seed)
    depth = steps * (32 if weights == "same" else 64)
    case = make_norm_case(
        rows, columns, depth, dtype, weights=weights, bias=bias, residual=residual, padding=padding, seed=seed,
        device=kernels.device,
    )  # fmt: skip
    assert_equal_to_two_kernels(case, kernels)
    if padding and rows > 1:
        assert case.normalised.as_strided((rows - 1, 8), case.normalised.stride(), depth).isnan().all()


def test_a_normalised_row_does_not_depend_on_the_others(kernels: Kernels) -> None:
    case = make_norm_case(4, 24, 384, torch.bfloat16, device=kernels.device)
    case.of.x[2] = torch.nan
    normalised, out = case.run(kernels.norm_linear)
    assert normalised[2].isnan().all()
    assert out[2].isnan().all()
    for row in (0, 1, 3):
        of = replace(case.of, x=case.of.x[row : row + 1], out=torch.full_like(out[:1], torch.nan))
        alone = replace(case, of=of, normalised=torch.full_like(normalised[:1], torch.nan)).run(kernels.norm_linear)
        assert torch.equal(alone[0][0], normalised[row])
        assert torch.equal(alone[1][0], out[row])


def test_bad_norms_are_named(emulation: ModuleType) -> None:
    def case(rows: int = 2, depth: int = 64) -> NormCase:
        return make_norm_case(rows, 8, depth, torch.bfloat16)

    given = case()
    for wrong, message in (
        (case(rows=5), "x: expected at most 4 rows of 1024 elements, got 5 of 64"),
        (case(depth=1056), "x: expected at most 4 rows of 1024 elements, got 2 of 1056"),
        (replace(given, gamma=given.gamma[1:]), r"gamma: expected shape \(64,\), got \(63,\)"),
        (replace(given, beta=torch.zeros(65).bfloat16()[1:]), "gamma, beta: expected data at multiples of 16 bytes"),
        (replace(given, normalised=torch.zeros(2, 32).bfloat16()), r"normalised: expected shape \(R=2, 64\)"),
        (replace(given, normalised=torch.zeros(2, 65).bfloat16()[:, 1:]), "normalised: expected rows that start"),
        (replace(given, normalised=given.of.x), "normalised: expected other memory than that of x"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.run(emulation.norm_linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 64)}, "out: expected dtype float32, got bfloat16"),
        ({"x": torch.zeros(2, 96, dtype=torch.bfloat16)}, r"x: expected shape \(R=2, 64\), got \(2, 96\)"),
        ({"x": torch.zeros(2 * 65, dtype=torch.bfloat16).as_strided((2, 64), (65, 1))}, "x: expected rows that start"),
        ({"bias": torch.zeros(7, dtype=torch.bfloat16)}, r"bias: expected shape \(N=8,\), got \(7,\)"),
        ({"residual": torch.zeros(2, 9, dtype=torch.bfloat16)}, r"residual: expected shape \(R=2, N=8\)"),
        ({"out": torch.zeros(2, 9, dtype=torch.bfloat16)}, r"weight: expected shape \(2, steps"),
        ({"out": torch.zeros(8, dtype=torch.bfloat16).expand(2, 8)}, "out: its rows overlap"),
        ({"activation": "relu"}, "activation: expected 'none', 'gelu' or 'quick_gelu', got 'relu'"),
    ],
)
def test_bad_arguments_are_named(emulation: ModuleType, change: dict[str, object], message: str) -> None:
    case = make_case(2, 8, 64, torch.bfloat16)
    with pytest.raises(ValueError, match=message):
        replace(case, **change).run(emulation.linear)


def test_bad_weights_are_named(emulation: ModuleType) -> None:
    case = make_case(2, 8, 64, torch.bfloat16, weights="int8")
    with pytest.raises(ValueError, match="scales: a weight of 8 bits needs them"):
        replace(case, weight=replace(case.weight, scales=None)).run(emulation.linear)
    wrong = make_case(2, 8, 64, torch.float16).weight
    with pytest.raises(ValueError, match=r"weight: expected bfloat16, int8 or uint8 \(float8_e4m3\), got float16"):
        replace(case, weight=wrong).run(emulation.linear)
