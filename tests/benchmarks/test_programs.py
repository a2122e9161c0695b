"""The benchmark programs of the CPU run, on a model so small that its times mean nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from gitfast.errors import GitfastError

from support.paths import BENCHMARKS
from support.tiny_bench import TINY, shrink


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.skipif(shutil.which("c++") is None, reason="the reading loop needs a compiler")
def test_decode(programs, monkeypatch, tmp_path, capsys):
    import decode

    file = tmp_path / "decode.json"
    arguments = ["--rounds", "2", "--new-tokens", "4", "--threads", "1", "--dtype", "int8", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["decode.py", *arguments])
    decode.main()
    (row,) = json.loads(file.read_text())["results"]
    layers = TINY.num_hidden_layers * (4 * 64**2 + 2 * 64 * 128)
    assert row["step_bytes"] > layers + TINY.vocab_size * 64
    assert set(map(len, row["samples_ms"].values())) == {2}
    assert "4 beams / greedy" in capsys.readouterr().out


def test_memory(programs):
    import memory

    row = memory.measure("git-base", "bfloat16")
    assert row["weights_mb"] > 0 <= row["loading_mb"] <= row["captioning_mb"]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert memory.peak_mb() == pytest.approx(int(status["VmHWM"].split()[0]) * 1024 / 1e6, rel=0.005)
    weights = memory.MappedWeights(TINY)
    assert all((weights[name] == values).all() for name, values in memory.RandomWeights(TINY).items())


def test_serve_names_what_it_cannot_write_before_it_measures(programs, tmp_path):
    serve = pytest.importorskip("serve", reason="needs the server's packages and a client's", exc_type=ImportError)
    with pytest.raises(GitfastError, match=r"json: cannot write .*: No such file"):
        serve.main(["--json", str(tmp_path / "missing" / "serve.json")])
