"""benchmarks/*_cuda.py on a tiny model and emulated kernels: what they measure is the same work on all sides."""

from __future__ import annotations

import pytest

from gitfast.bench.ceilings import Ceilings, Gemm
from gitfast.checkpoints.config import GitConfig

from support.paths import BENCHMARKS

CEILINGS = Ceilings("copy", 4000.0, {"bfloat16": Gemm(800.0, "torch")})


def test_all_sides_say_the_same(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import caption_cuda

    monkeypatch.setattr(caption_cuda, "NEW_TOKENS", 3)
    engines = {name: caption_cuda.ENGINES[name] for name in ("bfloat16", "float8")}
    monkeypatch.setattr(caption_cuda, "ENGINES", engines)
    results = list(caption_cuda.run("tiny", [1, 2], 1, "cpu", CEILINGS))
    assert [(row["batch"], row["engine"]) for row in results] == [
        (1, "transformers:bfloat16"),
        (1, "reference:bfloat16"),
        (1, "gitfast:bfloat16"),
        (1, "gitfast:float8"),
        (1, "gitfast:bfloat16, float32 pixels"),
        (1, "gitfast:bfloat16, 4 beams"),
        (2, "transformers:bfloat16"),
        (2, "reference:bfloat16"),
        (2, "gitfast:bfloat16"),
        (2, "gitfast:float8"),
        (2, "gitfast:bfloat16, float32 pixels"),
    ]
    same = {(row["batch"], row["engine"]): row["same_tokens"] for row in results}
    assert same[1, "gitfast:bfloat16"] == same[2, "gitfast:bfloat16"] == 1
    assert all(row["caption_ms"] > 0 for row in results)
    least = {(row["batch"], row["engine"]): row["floor_ms"] for row in results}
    assert 0 < least[1, "gitfast:float8"] < least[1, "gitfast:bfloat16"] < least[2, "gitfast:bfloat16"]


def test_clips_are_measured_too(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import caption_cuda

    monkeypatch.setattr(caption_cuda, "NEW_TOKENS", 2)
    monkeypatch.setattr(caption_cuda, "ENGINES", {"bfloat16": {"dtype": "bfloat16"}})
    monkeypatch.setitem(caption_cuda.SHAPES, "clips", {**caption_cuda.SHAPES["tiny"], "num_image_with_embedding": 2})
    results = {row["engine"]: row for row in caption_cuda.run("clips", [1], 1, "cpu", CEILINGS)}
    assert results["gitfast:bfloat16"]["same_tokens"] == results["reference:bfloat16"]["same_tokens"] == 1


def test_floors_are_those_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import floors

    work = floors.encode(GitConfig(), 1)
    assert work.flops == pytest.approx(50.5e9, rel=0.01)
    assert floors.encode(GitConfig(), 64).flops == 64 * work.flops
    assert floors.encode(GitConfig(), 64).num_bytes == work.num_bytes
    assert floors.step(GitConfig(), 1, 2, 2).num_bytes == pytest.approx(132e6 + 3.6e6, rel=0.01)
    assert floors.step(GitConfig(), 8, 1, 1).num_bytes == pytest.approx(66e6 + 8 * 1.8e6, rel=0.01)
    clip = floors.encode(GitConfig(num_image_with_embedding=6), 1)
    assert 6 * work.flops < clip.flops < 7 * work.flops
    assert clip.num_bytes == work.num_bytes


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
