"""``gitfast bench caption`` in this process, on models so small that its times mean nothing."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from gitfast.bench.ceilings import Ceilings, Gemm
from gitfast.bench.cpu_clock import CpuClock
from gitfast.bench.workload import random_pixels, random_workload
from gitfast.cli import main
from gitfast.engines.cpu import CpuEngine

from support.tiny_bench import TINY, shrink


@pytest.fixture
def caption(capsys, monkeypatch):
    """Runs the command for two rounds of five tokens: (exit code, stdout, stderr)."""
    shrink(monkeypatch)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        options = ["--rounds", "2", "--new-tokens", "5"]
        options += ["--threads", "2"] if "cuda" not in arguments and "--threads" not in arguments else []
        code = main(["bench", "caption", *options, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_captions_beside_transformers(caption, tmp_path):
    file, picture = tmp_path / "captions.json", tmp_path / "captions.png"
    ways = ["transformers:float32", "gitfast:float32", "gitfast:bfloat16", "gitfast:int8", "gitfast:w8a8"]
    sizes = ("--batch", 1, 3, "--clients", 1, 2, "--threads", 1, 2)
    code, out, errors = caption("--way", *ways, *sizes, "--json", file, "--plot", picture)
    assert (code, errors) == (0, "")
    report = json.loads(file.read_text())
    assert (report["model"], report["random_weights"], report["new_tokens"]) == ("git-base", True, 5)
    assert report["failed"] == []
    assert report["not_measured"] == {}
    rows = report["rows"]
    expected = [(way, threads, batch) for threads in (1, 2) for batch in (1, 3) for way in ways]
    assert [(row["way"], row["threads"], row["batch"]) for row in rows] == expected
    for row in rows:
        assert row["checked_tokens"] == 5 * row["batch"]
        assert row["encode_ms"]["median"] > 0 < row["first_token_ms"]["median"]
        assert row["captions_per_s"] == pytest.approx(1e3 * row["batch"] / row["caption_ms"]["median"])
        assert row["floor_ms"] > 0
        if row["way"].endswith("float32"):
            assert row["equal_tokens"] == row["checked_tokens"]
            assert row["error"] < 1e-5
        else:
            assert 1e-5 < row["error"] < 0.05
    assert all(row["speed"]["median"] == 1 for row in rows if row["way"] == ways[0])
    served = [(row["way"], row["threads"], row["clients"]) for row in report["clients"]]
    assert served == [(way, threads, clients) for threads in (1, 2) for clients in (1, 2) for way in ways]
    assert all(0 < row["latency_ms"]["median"] <= row["p95_ms"] for row in report["clients"])
    assert out.count("random weights") == 1
    assert out.count("floor: the least ms at those ceilings") == 1
    assert "  all " in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_two_heads_say_the_same(caption, monkeypatch, tmp_path):
    slow_memory = Ceilings("read", 1.0, {"float32": Gemm(1e3, "nobody")})
    monkeypatch.setattr(CpuClock, "ceilings", lambda clock, rounds: slow_memory)
    file = tmp_path / "heads.json"
    ways = ["gitfast:float32,head=full", "gitfast:float32,head=two_stage"]
    code, _, errors = caption("--way", *ways, "--json", file)
    assert (code, errors) == (0, "")
    rows = json.loads(file.read_text())["rows"]
    assert [(row["way"], row["equal_tokens"]) for row in rows] == [
        (way, row["checked_tokens"]) for way, row in zip(ways, rows, strict=True)
    ]
    # Five steps, each of which reads a byte of a weight of the head where the full head has four.
    saved = 5 * 3 * TINY.vocab_size * TINY.hidden_size
    assert rows[0]["floor_ms"] - rows[1]["floor_ms"] == pytest.approx(saved / 1e6)


def test_float64_is_timed_too(caption, tmp_path):
    file = tmp_path / "captions.json"
    assert caption("--way", "reference:float64", "reference:float32", "--json", file)[::2] == (0, "")
    rows = json.loads(file.read_text())["rows"]
    assert [row["equal_tokens"] for row in rows] == [5, 5]
    assert rows[0]["floor_ms"] > 0


def test_nothing_measured_is_a_failure(caption):
    code, _, errors = caption("--way", "transformers:float8")
    assert code == 1
    assert errors.startswith("gitfast: transformers:float8 is not measured: ValueError: way: ")


def test_lanes_side_by_side(caption, tmp_path):
    file, picture = tmp_path / "lanes.json", tmp_path / "lanes.png"
    ways = ["transformers:float32", "gitfast:float32"]
    arguments = ("--way", *ways, "--lanes", 1, 2, "--clients", 1, 3, "--batch", 2, "--json", file, "--plot", picture)
    code, out, errors = caption(*arguments)
    assert (code, errors) == (0, "")
    report = json.loads(file.read_text())
    names = [ways[0], "gitfast:float32,lanes=1", "gitfast:float32,lanes=2"]
    assert [row["way"] for row in report["rows"]] == names
    assert all(row["equal_tokens"] == 10 for row in report["rows"])
    assert [(row["way"], row["clients"]) for row in report["clients"]] == [(n, c) for c in (1, 3) for n in names]
    assert all(row["memory_mb"] is None or row["memory_mb"] < 500 for row in report["clients"])
    assert "MB a lane" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_clients(caption, tmp_path):
    picture = tmp_path / "captions.png"
    assert caption("--way", "gitfast:int8", "--plot", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("way", "packages"), [("openvino", ["openvino"]), ("onnxruntime", ["onnxruntime", "onnx"])])
def test_peers_do_the_same_work(caption, tmp_path, way, packages):
    for package in packages:
        pytest.importorskip(package, reason='pip install "gitfast[peers]"')
    file = tmp_path / "captions.json"
    code, _, errors = caption(
        "--way", f"{way}:float32", "gitfast:float32", "--batch", 2, "--clients", 2, "--json", file
    )
    report = json.loads(file.read_text())
    assert code == 0
    assert errors == f"gitfast: {way}:float32, 2 clients is not measured: takes one call at a time\n"
    row = report["rows"][0]
    assert row["equal_tokens"] == 10
    assert row["error"] < 1e-5
    assert [row["way"] for row in report["clients"]] == ["gitfast:float32"]


def test_peers_are_given_pixels_that_are_normalised_already():
    """As others are: normalising takes a millisecond, and is not what is timed."""
    exported = pytest.importorskip("gitfast.bench.exported", reason="needs torch")
    given = []

    class Peer(exported.TwoParts):
        def begin(self, pixels):
            given.append(pixels)

        def step(self, token, position):
            return np.zeros(TINY.vocab_size, np.float32)

    pixels = random_pixels(TINY, 2)
    peer = Peer(random_workload("tiny", TINY))
    peer.encode(pixels)
    peer.caption(pixels, 2)
    assert len(given) == 4
    assert all(np.shares_memory(each, pixels.normalised) for each in given)


def test_clips_and_real_models(caption, tmp_path):
    file = tmp_path / "captions.json"
    assert caption("--model", "base-vatex", "--way", "gitfast:float32", "onnxruntime:float32", "--json", file)[0] == 0
    report = json.loads(file.read_text())
    assert (report["model"], report["random_weights"]) == ("git-base-vatex", True)
    assert report["rows"][0]["equal_tokens"] == 5
    assert list(report["not_measured"]) == ["onnxruntime:float32"]
    arguments = ("--model", "git-tiny", "--way", "gitfast:int8", "transformers:float32", "--json", file)
    assert caption(*arguments)[0] == 0
    report = json.loads(file.read_text())
    assert (report["model"], report["random_weights"]) == ("git-tiny", False)
    assert report["rows"][1]["equal_tokens"] == 5


def test_captions_without_torch(caption, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    monkeypatch.setitem(sys.modules, "torch", None)
    file = tmp_path / "captions.json"
    code, out, errors = caption("--json", file)
    report = json.loads(file.read_text())
    assert code == 0
    dtypes = ("float32", "bfloat16", "int8", "w8a8")
    assert [row["way"] for row in report["rows"]] == [f"gitfast:{dtype}" for dtype in dtypes]
    assert set(report["not_measured"].values()) == {"torch is not installed"}
    assert "transformers:float32 is not measured: torch is not installed" in errors
    assert "not checked" in out


def test_a_way_that_is_wrong_is_not_timed(caption, monkeypatch, tmp_path):
    right = CpuEngine.generate

    def wrong(self, *arguments, **options):
        found = right(self, *arguments, **options)
        if self.dtype == "float32":
            found[0][0].token_ids[-1] += 1
        return found

    monkeypatch.setattr(CpuEngine, "generate", wrong)
    file = tmp_path / "captions.json"
    code, _, errors = caption("--way", "gitfast:float32", "gitfast:bfloat16", "--clients", 1, "--json", file)
    report = json.loads(file.read_text())
    assert code == 1
    assert errors == "gitfast: gitfast:float32: 4 of 5 tokens are those of float64, in a batch of 1; not timed\n"
    assert [row["way"] for row in report["rows"]] == ["gitfast:bfloat16"]
    assert [row["way"] for row in report["clients"]] == ["gitfast:bfloat16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--way", "tensorflow:float32"], "way: expected one of gitfast, transformers, compiled, openvino"),
        (["--way", "gitfast:int8,decode"], "way: expected options as NAME=VALUE after the dtype"),
        (["--way", "transformers:float32,decode=x"], "way: only gitfast takes options"),
        (["--way", "gitfast:int8,decode=x"], "way: gitfast on the CPU takes lanes and head, got decode"),
        (["--way", "gitfast:int4"], "dtype: expected 'float32', 'bfloat16', 'int8' or 'w8a8', got 'int4'"),
        (["--dtype", "int4"], "dtype: expected float32, bfloat16, int8, w8a8, got 'int4'"),
        (["--way", "gitfast:int8,lanes=two"], "way: expected lanes that divide 2 threads evenly, got two"),
        (["--way", "gitfast:int8,head=one"], "way: expected head=full or head=two_stage, got one"),
        (["--lanes", "1", "3"], "lanes: expected lanes that divide 2 threads evenly, got 3"),
        (["--device", "cuda", "--lanes", "2"], "lanes: only the cpu has lanes"),
        (["--model", "git-huge"], "git-huge"),
        (["--device", "cuda", "--threads", "2"], "threads: only the cpu has threads"),
    ],
)
def test_captions_that_cannot_be_timed(caption, arguments, message):
    code, _, errors = caption(*arguments)
    assert code == 1
    assert message in errors
    assert errors.count("\n") == 1


def test_captions_of_one_token_have_no_steps(caption, capsys):
    with pytest.raises(SystemExit):
        caption("--new-tokens", "1")
    assert "expected at least 2" in capsys.readouterr().err
