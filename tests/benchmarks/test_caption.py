"""The caption benchmark runs, on a model so small that its times mean nothing, and says that all engines agree."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from support.paths import BENCHMARKS


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, BENCHMARKS / program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.skipif(shutil.which("c++") is None, reason="the reading loop needs a compiler")
def test_caption_and_its_plot(tmp_path):
    engines = ["transformers:float32", "gitfast:float32", "gitfast:bfloat16", "gitfast:int8"]
    result, picture = tmp_path / "result.json", tmp_path / "picture.png"
    table = run("caption.py", "--shape", "tiny", "--rounds", 2, "--new-tokens", 5, "--json", result, *engines)
    assert all(table.count(f"| {name} ") >= 1 for name in engines)
    rows = json.loads(result.read_text())["results"]
    assert [row["engine"] for row in rows] == engines
    assert [row["equal_tokens"] for row in rows[:2]] == [5, 5]
    assert rows[1]["logit_error"] < 1e-5 < rows[2]["logit_error"] < 0.01
    assert rows[3]["logit_error"] < 0.05
    run("plot.py", result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("engine", "package"), [("openvino:float32", "openvino"), ("onnxruntime:float32", "onnxruntime")]
)
def test_peers_do_the_same_work(tmp_path, engine, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed: pip install ".[peers]"')
    result = tmp_path / "result.json"
    run("caption.py", "--shape", "tiny", "--rounds", 1, "--json", result, "transformers:float32", engine)
    rows = json.loads(result.read_text())["results"]
    assert rows[1]["equal_tokens"] == 20
    assert rows[1]["logit_error"] < 1e-5


def test_an_engine_that_is_not_there():
    command = [sys.executable, BENCHMARKS / "caption.py", "--shape", "tiny", "tensorflow:float32"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    expected = "engine: expected one of transformers, gitfast, compiled, openvino, onnxruntime, got 'tensorflow'"
    assert expected in " ".join(result.stderr.split())
