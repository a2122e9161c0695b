"""benchmarks/*_cuda.py on a tiny model and emulated kernels: what they measure is the same work on all sides."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def test_all_sides_say_the_same(
    emulated_ops: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import caption_cuda

    monkeypatch.setattr(caption_cuda, "NEW_TOKENS", 3)
    engines = {name: caption_cuda.ENGINES[name] for name in ("bfloat16", "float8")}
    monkeypatch.setattr(caption_cuda, "ENGINES", engines)
    results = caption_cuda.run("tiny", [1, 2], 1, "cpu")
    assert [(row["batch"], row["engine"]) for row in results] == [
        (1, "transformers:bfloat16"),
        (1, "gitfast:bfloat16"),
        (1, "gitfast:float8"),
        (1, "gitfast:bfloat16, float32 pixels"),
        (1, "gitfast:bfloat16, 4 beams"),
        (2, "transformers:bfloat16"),
        (2, "gitfast:bfloat16"),
        (2, "gitfast:float8"),
        (2, "gitfast:bfloat16, float32 pixels"),
    ]
    same = {(row["batch"], row["engine"]): row["same_tokens"] for row in results}
    assert same[1, "gitfast:bfloat16"] == same[2, "gitfast:bfloat16"] == 1
    assert all(row["caption_ms"] > 0 for row in results)
    assert len(capsys.readouterr().out.splitlines()) == len(results)


def test_agreement_ends_at_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import caption_cuda

    assert caption_cuda.agreement([[1, 2, 3], [1, 9, 3]], [[1, 2, 3], [1, 2, 3]]) == pytest.approx(4 / 6)


def test_both_ways_through_many_texts_say_the_same(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import refill_cuda

    monkeypatch.setattr(refill_cuda, "LONGEST", 6)
    monkeypatch.setattr(refill_cuda, "END", 0.3)
    result = refill_cuda.run("tiny", 8, 2, 1, "cpu")
    assert result["same"]
    assert result["new_tokens"]["longest"] == 6 > result["new_tokens"]["mean"] > 1
    assert result["steps"]["refilled"] < result["steps"]["in parts"]
