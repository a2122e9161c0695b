"""``gitfast bench`` in this process, on models so small that its times mean nothing."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gitfast import ops
from gitfast.bench import devices, peers
from gitfast.cli import main

from support.tiny_bench import shrink


@pytest.fixture
def bench(capsys, monkeypatch):
    """Runs the command with one round: (exit code, stdout, stderr)."""
    shrink(monkeypatch)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        options = ["--rounds", "1", "--threads", "2"] if "cuda" not in arguments else []
        code = main(["bench", "kernels", *options, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_a_run_prints_a_table_and_writes_json(bench, tmp_path):
    code, out, errors = bench("--model", "base", "base-vatex", "--json", tmp_path / "kernels.json")
    assert (code, errors) == (0, "")
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert (report["device"], report["rounds"], report["failed"]) == ("cpu", 1, [])
    assert report["machine"]["threads"] == 2
    assert {"cpu", "isa", "versions", "date"} <= set(report["machine"])
    assert report["ceilings"]["gb_per_s"] > 0
    assert {dtype: gemm["tflop_per_s"] > 0 for dtype, gemm in report["ceilings"]["gemm"].items()} == {
        "float32": True,
        "bfloat16": True,
        "int8": True,
        "w8a8": True,
    }
    rows = report["rows"]
    assert {row["kernel"] for row in rows} == {"layer_norm", "linear", "prefix_attention"}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "int8", "w8a8"}
    assert {row["cache"] for row in rows} == {"cold", "warm"}
    for row in rows:
        assert set(row["microseconds"]) == set(row["error"]) == {"gitfast", *row["ratio"]}
        assert row["ratio"]
        assert row["share"] > 0
    assert f"{len(rows)} rows, 0 cases failed" in out
    assert "measured ceilings: read" in out
    assert "not measured: torch.compile, FlexAttention: a test compiles nothing" in out


def test_lines_of_json_are_added(bench, tmp_path):
    file = tmp_path / "rows.jsonl"
    for kernel in ("layer_norm", "linear"):
        assert bench("--kernel", kernel, "--model", "base", "--json", file)[0] == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    runs = [line for line in lines if line["kind"] == "Run"]
    assert [run["device"] for run in runs] == ["cpu", "cpu"]
    assert all(run["ceilings"]["gb_per_s"] > 0 for run in runs)
    kernels = [line["kernel"] for line in lines if line["kind"] == "Row"]
    assert list(dict.fromkeys(kernels)) == ["layer_norm", "linear"]


def test_json_instead_of_the_table(bench):
    code, out, errors = bench("--json", "-", "--kernel", "layer_norm", "--model", "base")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert {row["kernel"] for row in rows} == {"layer_norm"}
    assert "measured ceilings" in errors


def test_a_kernel_that_is_wrong_fails_and_is_not_timed(bench, monkeypatch, tmp_path):
    right = ops.layer_norm

    def wrong(x: np.ndarray, *arguments: object, **options: object) -> np.ndarray:
        y = right(x, *arguments, **options)
        y[-1, -1] += 0.01
        return y

    monkeypatch.setattr(ops, "layer_norm", wrong)
    arguments = ("--kernel", "layer_norm", "prefix_attention", "--model", "base", "--json", tmp_path / "kernels.json")
    code, out, errors = bench(*arguments)
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert code == 1
    assert {row["kernel"] for row in report["rows"]} == {"prefix_attention"}
    assert errors.count("gitfast: layer_norm") == len(report["failed"]) > 0
    assert "times as far from float64 as float32 may be; not timed" in errors
    assert f"{len(report['failed'])} cases failed" in out


def test_a_peer_that_takes_no_such_case_is_named(bench, monkeypatch, tmp_path):
    def refuse(*_: object) -> object:
        raise RuntimeError("no such shape")

    monkeypatch.setattr(peers, "linear", refuse)
    file = tmp_path / "rows.jsonl"
    code, _, errors = bench("--kernel", "layer_norm", "linear", "--model", "base", "--json", file)
    assert code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    left_out = {line["name"]: line["problem"] for line in lines if line["kind"] == "NotMeasured"}
    named = [f"gitfast: {name} is not measured: RuntimeError: no such shape" for name in left_out]
    assert errors.splitlines() == named
    assert len(left_out) == sum(line.get("kernel") == "linear" and line["cache"] == "cold" for line in lines) > 0


def test_without_torch(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = bench("--model", "base", "--json", tmp_path / "kernels.json")
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert code == 0
    assert out.count('not measured: torch: not installed: pip install "gitfast[torch]"') == 1
    assert report["rows"]
    assert all(list(row["microseconds"]) == ["gitfast"] for row in report["rows"])


def test_plot(bench, tmp_path):
    assert bench("--kernel", "linear", "--model", "base", "--plot", tmp_path / "roofline.png")[0] == 0
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, errors = bench("--plot", tmp_path / "roofline.png")
    assert (code, out) == (1, "")
    assert errors == 'gitfast: plot: matplotlib is not installed: pip install "gitfast[bench]"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "relu"], "kernel: expected layer_norm, linear, prefix_attention on cpu, got 'relu'"),
        (["--model", "huge"], "model: expected git-base, git-base-coco,"),
        (["--device", "cuda", "--kernel", "layer_norm"], "on cuda, got 'layer_norm'"),
        (["--device", "cuda", "--threads", "2"], "threads: only the cpu has threads"),
    ],
)
def test_arguments_that_are_not_there(bench, arguments, message):
    code, out, errors = bench(*arguments)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert message in errors


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [
        (None, "this build has no CUDA part"),
        (SimpleNamespace(devices=lambda: {"problem": "no driver"}), "no driver"),
        (SimpleNamespace(devices=lambda: {"problem": ""}), "it takes a torch with CUDA"),
    ],
)
def test_no_device(bench, monkeypatch, cuda, reason):
    monkeypatch.setattr(devices, "_native_cuda", lambda: cuda)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert bench("--device", "cuda") == (1, "", f"gitfast: device: cuda cannot be timed: {reason}\n")


@pytest.mark.parametrize(
    ("arguments", "example"), [([], "kernels"), (["kernels"], "kernels"), (["caption"], "caption")]
)
def test_help_shows_an_example(capsys, arguments, example):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments, "--help"])
    assert exit_.value.code == 0
    assert f"examples:\n  gitfast bench {example}" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["kernels", "caption"])
@pytest.mark.parametrize("argument", ["json", "plot"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_timed(capsys, monkeypatch, tmp_path, what, argument):
    monkeypatch.setattr(devices, "CpuClock", None)  # nothing can be timed
    for file, reason in ((tmp_path / "no" / "x", "No such file or directory"), (tmp_path, "Is a directory")):
        assert main(["bench", what, f"--{argument}", str(file)]) == 1
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"gitfast: {argument}: cannot write {file}: {reason}\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("what", ["kernels", "caption"])
@pytest.mark.parametrize("argument", ["json", "plot"])
def test_a_pipe_or_device_is_no_file_to_write(capsys, monkeypatch, tmp_path, what, argument):
    """A pipe waited for its reader, and a full device was known when everything had been timed."""
    monkeypatch.setattr(devices, "CpuClock", None)
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", "/dev/full", "/dev/null"):
        assert main(["bench", what, f"--{argument}", str(file)]) == 1
        said = f"gitfast: {argument}: cannot write {file}: not a regular file\n"
        assert tuple(capsys.readouterr()) == ("", said)


def test_a_disk_that_fills_meanwhile_is_named(bench, monkeypatch, tmp_path):
    def full(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    code, _, errors = bench("--kernel", "layer_norm", "--model", "base", "--json", tmp_path / "x.json")
    assert (code, errors) == (1, f"gitfast: json: cannot write {tmp_path / 'x.json'}: No space left on device\n")


def test_what_is_in_a_file_stays_until_there_is_something_new(bench, tmp_path):
    file = tmp_path / "kernels.json"
    file.write_text("old")
    assert bench("--json", file, "--kernel", "relu")[0] == 1
    assert file.read_text() == "old"
    assert bench("--json", tmp_path / "new.json", "--kernel", "relu")[0] == 1
    assert not (tmp_path / "new.json").exists()
