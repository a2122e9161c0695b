"""Every timed kernel passes the gate, and the gate catches wrong results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gitfast import ops
from gitfast.bench import cpu_cases, operands
from gitfast.bench.case import OURS, GateError, Operands, Side, check, checked_rows

from support.tiny_bench import shrink


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> cpu_cases.Context:
    shrink(monkeypatch)
    return cpu_cases.Context(ops.ThreadPool(2), torch)


@pytest.mark.parametrize("kernel", cpu_cases.KERNELS)
def test_every_side_computes_the_same(context, kernel):
    names: set[str] = set()
    for case in cpu_cases.KERNELS[kernel](context, ["git-base", "git-base-vatex"]):
        built = case.build()
        errors = {name: check(built, name, built.expected()) for name in built.sides}
        assert all(error <= 1 for error in errors.values())
        assert case.flops > 0 < case.bytes
        names |= set(errors)
    assert OURS in names
    if kernel == "prefix_attention":
        attention = {"sdpa", "matmul", "sdpa, copied", "matmul, copied", "sdpa, grouped", "sdpa, expanded"}
        assert names == {OURS} | attention


def test_without_torch_there_are_no_peers(context):
    alone = cpu_cases.Context(context.pool, None)
    for kernel in cpu_cases.KERNELS.values():
        assert all(list(case.build().sides) == [OURS] for case in kernel(alone, ["git-base"]))


def gate(made: Operands) -> float:
    return check(made, OURS, made.expected())


def made(result: np.ndarray, rounds_to: str = "float32") -> Operands:
    expected = np.random.default_rng(0).standard_normal((5, 40))
    return Operands({OURS: Side(lambda: result + expected, rounds_to)}, 5, lambda rows: expected[rows])


def wrong_by(amount: float) -> np.ndarray:
    error = np.zeros((5, 40))
    error[4, 39] = amount
    return error


class TestGate:
    def test_one_wrong_value(self):
        assert gate(made(wrong_by(1e-6))) < 1
        with pytest.raises(GateError, match=r"gitfast is .* times as far from float64 as float32 may be"):
            gate(made(wrong_by(1e-3)))
        assert gate(made(wrong_by(1e-3), "bfloat16")) < 1
        with pytest.raises(GateError, match="bfloat16"):
            gate(made(wrong_by(0.1), "bfloat16"))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite(self, value):
        with pytest.raises(GateError, match="not finite"):
            gate(made(wrong_by(value)))

    def test_a_wrong_shape(self):
        with pytest.raises(GateError, match=r"shape \(1, 5, 40\), expected \(5, 40\)"):
            gate(made(np.zeros((1, 5, 40))))

    def test_many_rows_are_compared_at_both_ends_and_between(self):
        assert checked_rows(200).tolist() == list(range(200))
        rows = checked_rows(10_000)
        assert (rows[0], rows[-1], len(np.unique(rows))) == (0, 9999, 256)


class TestOperands:
    def test_bfloat16_is_rounded_as_torch_rounds(self):
        values = operands.normal(np.random.default_rng(0), 1000)
        assert np.array_equal(operands.to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
    def test_packing_keeps_the_weights(self, dtype):
        weight = operands.weights(np.random.default_rng(0), 40, 33, dtype)
        read = ops.linear(np.eye(33, dtype=np.float32), ops.PackedWeight(weight, dtype=dtype))
        assert np.array_equal(read, weight.T)
