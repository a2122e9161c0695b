"""Captions of the CUDA engine on a tiny model and emulated kernels: what is timed is the same work in every way."""

from __future__ import annotations

import pytest

from gitfast.bench import caption, floors
from gitfast.bench.captioners import Way
from gitfast.bench.ceilings import Ceilings, Gemm
from gitfast.bench.workload import open_workload
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.published import SHAPES

from support.paths import BENCHMARKS
from support.tiny_bench import TINY, shrink

CEILINGS = Ceilings("copy", 4000.0, {dtype: Gemm(800.0, "torch") for dtype in ("float32", "bfloat16")})


def run(model: str, ways: list[str], batches: list[int], clients: tuple[int, ...] = ()) -> caption.Report:
    workload = open_workload(model)
    settings = caption.Settings([Way.parse(way) for way in ways], "emulated", [1], batches, clients, 3, 1)
    report = caption.Report("cuda", {}, model, workload.random, 3, 1, CEILINGS)
    outcomes = [outcome for found in caption.run(workload, settings, report) for outcome in found]
    assert outcomes == [*report.rows, *report.clients]
    assert report.not_measured == {}
    return report


def test_all_ways_say_the_same(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    ways = ["transformers:bfloat16", "reference:bfloat16", "gitfast:bfloat16", "gitfast:float8"]
    report = run("git-base", ways, [1, 2], clients=(2,))
    assert [(row.batch, row.way) for row in report.rows] == [(batch, way) for batch in (1, 2) for way in ways]
    rows = {(row.batch, row.way): row for row in report.rows}
    assert all(row.equal_tokens == row.checked_tokens == 3 * row.batch for row in report.rows)
    assert all(row.error is not None and row.error < 0.1 for row in report.rows)
    floors_ms = [rows[1, "gitfast:float8"].floor_ms, rows[1, "gitfast:bfloat16"].floor_ms]
    assert 0 < floors_ms[0] < floors_ms[1] < rows[2, "gitfast:bfloat16"].floor_ms
    assert [row.way for row in report.clients] == ways


def test_clips_and_options(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    report = run("git-base-vatex", ["reference:bfloat16", "gitfast:bfloat16,decode=operations"], [1])
    assert [row.equal_tokens for row in report.rows] == [3, 3]
    with pytest.raises(ValueError, match="way: gitfast on cuda takes decode and prefix_dtype, got speed"):
        run("git-base", ["gitfast:bfloat16,speed=high"], [1])
    with pytest.raises(ValueError, match="decode: expected 'operations'"):
        run("git-base", ["gitfast:bfloat16,decode=fast"], [1])


def test_floors_are_those_of_the_documents() -> None:
    config = SHAPES["git-base"]
    work = floors.encode(config, 1)
    assert work.flops == pytest.approx(50.5e9, rel=0.01)
    assert floors.encode(config, 64).flops == 64 * work.flops
    assert floors.encode(config, 64).num_bytes == work.num_bytes
    assert floors.step(config, 1, 2, 2).num_bytes == pytest.approx(132e6 + 3.6e6, rel=0.01)
    assert floors.step(config, 8, 1, 1).num_bytes == pytest.approx(66e6 + 8 * 1.8e6, rel=0.01)
    clip = floors.encode(GitConfig(num_image_with_embedding=6), 1)
    assert 6 * work.flops < clip.flops < 7 * work.flops
    assert clip.num_bytes == work.num_bytes
    wide, narrow = (floors.caption(config, 1, 20, dtype, CEILINGS) for dtype in ("bfloat16", "float8"))
    assert wide - narrow == pytest.approx(20 * 66e6 / 4e12, rel=0.01)


def test_both_ways_through_many_texts_say_the_same(emulated_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import refill_cuda

    monkeypatch.setattr(refill_cuda, "END", 0.3)
    result = refill_cuda.run(TINY, 8, 2, 1, "cpu", new_tokens=6)
    assert result["same"]
    assert result["new_tokens"]["longest"] == 6 > result["new_tokens"]["mean"] > 1
    assert result["steps"]["refilled"] < result["steps"]["in parts"]
