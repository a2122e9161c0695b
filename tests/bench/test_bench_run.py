"""The statistics of a run's times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gitfast.bench.case import OURS, Case, Operands, Side
from gitfast.bench.ceilings import Ceilings, Gemm
from gitfast.bench.report import as_json, headline, line, summary
from gitfast.bench.run import Bench, Failure, Report, run_cases, start

CEILINGS = Ceilings("read", 10.0, {"float32": Gemm(1.0, OURS), "bfloat16": Gemm(2.0, "torch")})


class FakeClock:
    """Ours takes 1, 2, 3 ... microseconds in successive rounds, peers three times and half as long."""

    cache_bytes = 1000

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.prepared: list[tuple[str, int, str]] = []
        self.turns: list[str] = []

    def ceilings(self, rounds: int) -> Ceilings:
        return CEILINGS

    def copies(self, case: Case) -> int:
        return 4

    def prepare(self, name: str, copies: Sequence[Operands], cache: str) -> Callable[[], float]:
        if name == self.refuses:
            raise RuntimeError("cannot be captured")
        self.prepared.append((name, len(copies), cache))
        times = iter(range(1, 100))

        def measure() -> float:
            self.turns.append(name)
            return 1e-6 * next(times) * {OURS: 1, "slow": 3, "fast": 0.5}[name]

        return measure


def make_case(*, num_bytes: float = 100, wrong: str = "", broken: str = "", dtype: str = "float32") -> Case:
    def side(name: str) -> Side:
        def call() -> np.ndarray:
            if name == broken:
                raise RuntimeError("this peer takes no such shape\nand more")
            return np.ones((2, 3), np.float32) * (2 if name == wrong else 1)

        return Side(call)

    def build() -> Operands:
        return Operands({name: side(name) for name in (OURS, "slow", "fast")}, 2, lambda rows: np.ones((2, 3))[rows])

    return Case("add", "base decode", "2 x 3", dtype, flops=30, bytes=num_bytes, build=build)


def run(*cases: Case, rounds: int = 3, refuses: str = "") -> tuple[Report, FakeClock, list[object]]:
    clock = FakeClock(refuses)
    bench = Bench("cpu", {"threads": 2, "cpu": "a processor", "isa": "avx2"}, clock, cases, {}, None)
    report = start(bench, rounds)
    return report, clock, list(run_cases(bench, report))


def test_rows_have_medians_quartiles_ratios_and_shares():
    report, _, outcomes = run(make_case())
    cold, warm = report.rows
    assert outcomes == [[cold, warm]]
    assert (cold.cache, warm.cache) == ("cold", "warm")
    ours = cold.microseconds[OURS]
    assert (ours.q1, ours.median, ours.q3) == pytest.approx((1.5, 2, 2.5))
    assert cold.ratio["slow"].median == pytest.approx(3)
    assert cold.ratio["fast"].q3 == pytest.approx(0.5)
    assert cold.gb_per_s == pytest.approx(100 / 2e-6 / 1e9)
    assert cold.tflop_per_s == pytest.approx(30 / 2e-6 / 1e12)
    assert (cold.bound, cold.share) == ("memory", pytest.approx(0.05 / 10))
    assert cold.error == {OURS: 0, "slow": 0, "fast": 0}


def test_the_ceiling_that_bounds_depends_on_the_dtype():
    assert CEILINGS.least_seconds(1e12, 1e9, "float32") == (1.0, "compute")
    assert CEILINGS.least_seconds(1e12, 1e9, "int8") == (0.5, "compute")
    assert CEILINGS.least_seconds(1e12, 1e9, "float8") == (0.5, "compute")
    assert CEILINGS.least_seconds(1e10, 1e9, "bfloat16") == (0.1, "memory")


def test_sides_take_turns_on_operands_of_their_own():
    _, clock, _ = run(make_case(), rounds=2)
    assert clock.prepared[:3] == [(OURS, 4, "cold"), ("slow", 4, "cold"), ("fast", 4, "cold")]
    assert clock.prepared[3:] == [(OURS, 1, "warm"), ("slow", 1, "warm"), ("fast", 1, "warm")]
    assert clock.turns[:6] == ["fast", "slow", OURS, OURS, "slow", "fast"]


def test_what_does_not_fit_the_caches_is_never_warm():
    report, _, _ = run(make_case(num_bytes=1001))
    assert [row.cache for row in report.rows] == ["cold"]


@pytest.mark.parametrize("wrong", [OURS, "fast"])
def test_a_case_that_is_wrong_is_not_timed_and_the_next_one_is(wrong):
    report, clock, outcomes = run(make_case(wrong=wrong, num_bytes=2000), make_case())
    assert isinstance(outcomes[0], Failure)
    assert report.failed == [outcomes[0]]
    assert outcomes[0].case == "add, base decode, 2 x 3, float32"
    assert outcomes[0].problem.startswith(f"{wrong} is ")
    assert len(clock.prepared) == 6
    assert len(report.rows) == 2


def test_a_peer_that_cannot_is_left_out():
    report, _, _ = run(make_case(broken="slow"))
    assert list(report.rows[0].ratio) == ["fast"]
    reason = {"slow: add, base decode, 2 x 3, float32": "RuntimeError: this peer takes no such shape"}
    assert report.not_measured == reason


def test_a_peer_that_the_clock_refuses_is_left_out():
    report, _, _ = run(make_case(), refuses="fast")
    assert [list(row.ratio) for row in report.rows] == [["slow"], ["slow"]]
    assert list(report.rows[0].error) == [OURS, "slow"]
    assert report.not_measured == {"fast: add, base decode, 2 x 3, float32": "RuntimeError: cannot be captured"}


def test_ours_must_run():
    with pytest.raises(RuntimeError, match="cannot be captured"):
        run(make_case(), refuses=OURS)


def test_text_names_the_ceilings_and_every_loss():
    report, _, _ = run(make_case())
    assert "read 10.0 GB/s" in "\n".join(headline(report))
    assert "fast 0.50 (0.50-0.50)" in line(report.rows[0])
    assert list(summary(report)) == [
        "2 rows, 0 cases failed and were not timed",
        "ahead of the fastest peer in 0 rows, behind in 2",
        "  0.50 beside fast: add, 2 x 3, float32, cold",
        "  0.50 beside fast: add, 2 x 3, float32, warm",
    ]


def test_one_round_is_its_own_spread():
    report, _, _ = run(make_case(), rounds=1)
    ours = report.rows[0].microseconds[OURS]
    assert ours.q1 == ours.median == ours.q3 == pytest.approx(1)
    assert '"gb_per_s": 10.0' in as_json(report)
