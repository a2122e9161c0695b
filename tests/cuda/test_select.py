"""The CUDA kernels of the head and the choice of tokens."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.cuda import emulated
from support.cuda.kernels import Kernels, device_only, every_order
from support.cuda.linear_cases import FORMATS
from support.cuda.select_cases import Case, make_case
from support.tiers import tries

DTYPES = [torch.float16, torch.bfloat16]


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("rows", "vocab", "choices"), [(1, 5, 5), (3, 300, 2), (17, 130, 10)])
def test_equals_float64(
    kernels: Kernels, dtype: torch.dtype, weights: str, rows: int, vocab: int, choices: int
) -> None:
    case = make_case(
        rows,
        vocab,
        64,
        dtype,
        kernels.select_workspace,
        choices=choices,
        weights=weights,
        logits=True,
        draw=True,
        device=kernels.device,
    )
    assert case.run(kernels.head_select).error() <= 1


@device_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("rows", "choices"), [(1, 1), (5, 10), (40, 64)])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_vocabulary_of_30522(
    kernels: Kernels, dtype: torch.dtype, weights: str, rows: int, choices: int, overlap: bool
) -> None:
    case = make_case(
        rows, 30522, 768, dtype, kernels.select_workspace, choices=choices, weights=weights, logits=True, draw=True,
        device=kernels.device,
    )  # fmt: skip
    case.overlap = overlap
    for step in range(3):
        case.step += step
        case.run(kernels.head_select)
        assert case.error() <= 1


@tries(50)
@given(
    rows=st.integers(1, 18),
    vocab=st.integers(1, 700),
    steps=st.integers(1, 10),
    choices=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES),
    weights=st.sampled_from(FORMATS),
    bias=st.booleans(),
    temperature=st.sampled_from([0.05, 1.0, 3.0]),
    logits=st.booleans(),
    draw=st.booleans(),
    order=st.sampled_from(emulated.ORDERS),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    kernels: Kernels,
    rows: int,
    vocab: int,
    steps: int,
    choices: int,
    dtype: torch.dtype,
    weights: str,
    bias: bool,
    temperature: float,
    logits: bool,
    draw: bool,
    order: str,
    seed: int,
) -> None:
    kernels.set_order(order, seed=seed)
    case = make_case(
        rows, vocab, steps * 64, dtype, kernels.select_workspace, choices=min(choices, vocab), weights=weights,
        bias=bias, temperature=temperature, logits=logits, draw=draw, seed=seed, device=kernels.device,
    )  # fmt: skip
    assert case.run(kernels.head_select).error() <= 1


def constant(kernels: Kernels, vocab: int, choices: int = 1, *, draw: bool = False) -> Case:
    """One row whose logits are the bias, all zero."""
    case = make_case(
        1, vocab, 64, torch.float16, kernels.select_workspace, choices=choices, draw=draw, device=kernels.device
    )
    case.x[:] = 0
    case.bias[:] = 0
    return case


@every_order
def test_of_equal_ones_the_first_token_wins(kernels: Kernels) -> None:
    case = constant(kernels, 400, 6)
    case.bias[[7, 131, 130, 399]] = 2.0
    case.run(kernels.head_select)
    assert case.tokens[0].tolist() == [7, 130, 131, 399, 0, 1]


@every_order
def test_as_many_choices_in_one_part_as_there_may_be(kernels: Kernels) -> None:
    case = constant(kernels, 300, 64)
    best = torch.randperm(128)[:64]  # all among the first 128 tokens
    case.bias[best] = torch.arange(64, 0, -1).half().to(kernels.device)
    case.run(kernels.head_select)
    assert case.tokens[0].tolist() == best.tolist()


def test_draws_follow_the_distribution(kernels: Kernels) -> None:
    case = constant(kernels, 300, draw=True)
    case.bias[:] = -torch.inf
    weights = {3: 1.0, 127: 2.0, 128: 3.0, 299: 4.0}
    for token, weight in weights.items():
        case.bias[token] = torch.tensor(weight).log()
    draws = 400
    case = replace(
        case,
        x=case.x.expand(draws, -1).contiguous(),
        tokens=case.tokens.expand(draws, -1).contiguous(),
        log_probs=case.log_probs.expand(draws, -1).contiguous(),
        keys=torch.arange(draws, device=kernels.device),
        step=torch.zeros(draws, dtype=torch.int32, device=kernels.device),
        drawn=torch.empty(draws, dtype=torch.int32, device=kernels.device),
        drawn_log_probs=None,
        workspace=torch.empty(kernels.select_workspace(draws, 300, 1), dtype=torch.uint8, device=kernels.device),
    )
    case.run(kernels.head_select)
    counts = {token: int((case.drawn == token).sum()) for token in weights}
    assert sum(counts.values()) == draws, "a token of weight zero was drawn"
    chi_square = sum((counts[t] - draws * w / 10) ** 2 / (draws * w / 10) for t, w in weights.items())
    assert chi_square < 16.3  # of 3 degrees of freedom: exceeded once in a thousand


def test_a_row_does_not_depend_on_the_others(kernels: Kernels) -> None:
    case = make_case(
        19, 300, 128, torch.bfloat16, kernels.select_workspace, choices=3, logits=True, draw=True, device=kernels.device
    )
    case.run(kernels.head_select)
    for row in range(0, 19, 3):
        alone = make_case(
            1,
            300,
            128,
            torch.bfloat16,
            kernels.select_workspace,
            choices=3,
            logits=True,
            draw=True,
            device=kernels.device,
        )
        alone.weight, alone.bias = case.weight, case.bias
        alone.x, alone.keys, alone.step = (x[row : row + 1] for x in (case.x, case.keys, case.step))
        alone.run(kernels.head_select)
        for name in ("tokens", "log_probs", "logits", "drawn", "drawn_log_probs"):
            assert torch.equal(getattr(alone, name)[0], getattr(case, name)[row])


@every_order
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_marked(kernels: Kernels, value: float) -> None:
    case = make_case(3, 300, 64, torch.bfloat16, kernels.select_workspace, choices=2, draw=True, device=kernels.device)
    case.run(kernels.head_select)
    others = case.tokens[[0, 2]].clone()
    case.x[1, 5] = value
    case.run(kernels.head_select)
    assert case.tokens[1].tolist() == [-1, -1]
    assert case.log_probs[1].isnan().all()
    assert case.drawn[1] == -1
    assert case.drawn_log_probs[1].isnan()
    assert torch.equal(case.tokens[[0, 2]], others)


def test_tokens_that_cannot_be(kernels: Kernels) -> None:
    case = constant(kernels, 300, 3, draw=True)
    case.bias[:] = -torch.inf
    case.bias[200] = 1
    case.run(kernels.head_select)
    assert case.tokens[0, 0] == case.drawn[0] == 200
    assert case.log_probs[0].tolist() == [0.0, -torch.inf, -torch.inf]
    case.bias[200] = -torch.inf
    case.run(kernels.head_select)
    assert case.tokens[0].tolist() == [-1, -1, -1]
    assert case.drawn[0] == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(7, dtype=torch.bfloat16)}, r"bias: expected shape \(300,\), got \(7,\)"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"tokens": torch.zeros(2, 65, dtype=torch.int32), "log_probs": torch.zeros(2, 65),
          "workspace": torch.zeros(9999, dtype=torch.uint8)}, "tokens: expected 1 to 64 choices per row, got 65"),
        ({"log_probs": torch.zeros(2, 4)}, r"log_probs: expected shape \(R=2, choices=3\), got \(2, 4\)"),
        ({"tokens": torch.zeros(2, 3, dtype=torch.int64)}, "tokens: expected dtype int32, got int64"),
        ({"workspace": torch.zeros(9, dtype=torch.uint8)}, "workspace: expected at least 224 bytes, got 9"),
        ({"keys": torch.zeros(2, dtype=torch.int64)}, "keys, step, drawn: expected all or none"),
        ({"drawn_log_probs": torch.zeros(2)}, "drawn_log_probs: expected None without drawn"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(emulation: ModuleType, change: dict[str, object], message: str) -> None:
    case = make_case(2, 300, 64, torch.bfloat16, emulation.select_workspace, choices=3)
    with pytest.raises(ValueError, match=message):
        replace(case, **change).run(emulation.head_select)
