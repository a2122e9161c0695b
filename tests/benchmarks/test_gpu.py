"""The runner of gpu.sh: what fails or hangs loses only itself, and all that was measured is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest

from gitfast.ops.cuda_persistent import HEAD_DIM

from support.cuda import emulated
from support.paths import BENCHMARKS, ROOT
from support.processes import ENVIRONMENT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def say(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def steps_of(rows: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    return {line["name"]: line["status"] for line in lines if line["kind"] == "Step"}


def test_a_step_loses_only_itself(gpu: ModuleType, tmp_path: Path) -> None:
    steps = [
        gpu.Step("fails", 20, say("print('about to fail'); raise SystemExit(3)")),
        gpu.Step("hangs", 5, ("bash", "-c", "echo begun; sleep 600; echo ended")),
        gpu.Step("is not there", 20, ("no-such-program",)),
        gpu.Step(
            "measures", 20, (*say("import sys; print('{\"kind\": \"Row\"}', file=open(sys.argv[1], 'a'))"), "{rows}")
        ),
        gpu.Step("keeps", 20, (*say("import sys; open(sys.argv[1], 'w').write('{}')"), "{scratch}/more.json")),
    ]
    beside = [gpu.Step("runs beside", 20, say("print('beside')"))]
    part = gpu.Part("first", tmp_path, "command", limit_s=200)
    assert part.run([(steps, beside)]) == 1
    statuses = steps_of(part.rows)
    assert statuses == {
        "fails": "3",
        "hangs": "stopped after 5 s",
        "is not there": "cannot run: No such file or directory",
        "measures": "0",
        "keeps": "0",
        "runs beside": "0",
    }
    assert part.failed == ["fails", "hangs", "is not there"]
    assert '{"kind": "Row"}' in part.rows.read_text()
    log = part.log.read_text()
    assert all(text in log for text in ("fails: about to fail", "hangs: begun", "runs beside: beside"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.jsonl", "first.tar.gz", "first.txt"]
    with tarfile.open(part.tar) as tar:
        assert set(tar.getnames()) == {f"first/{name}" for name in ("first.jsonl", "first.txt", "more.json")}


def test_a_part_ends_in_time(gpu: ModuleType, tmp_path: Path) -> None:
    steps = [gpu.Step("long", 60, say("import time; time.sleep(600)")), gpu.Step("later", 60, say("print(1)"))]
    part = gpu.Part("second", tmp_path, "command", limit_s=gpu.LEAST_S + 1)
    start = time.monotonic()
    assert part.run([(steps,)]) == 1
    assert time.monotonic() - start < 60
    statuses = steps_of(part.rows)
    assert statuses["later"] == "no time left"
    assert statuses["long"].startswith("stopped after")


def test_a_tar_is_there_after_the_first_step(gpu: ModuleType, tmp_path: Path) -> None:
    seen = say("import os, sys; sys.exit(0 if os.path.exists(sys.argv[1]) else 9)")
    steps = [gpu.Step("one", 20, say("pass")), gpu.Step("two", 20, (*seen, str(tmp_path / "first.tar.gz")))]
    assert gpu.Part("first", tmp_path, "command", limit_s=200).run([(steps,)]) == 0


@pytest.mark.parametrize("part", ["first", "second"])
def test_limits_fit_into_a_part(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str) -> None:
    monkeypatch.setattr(gpu, "CARRIED", tmp_path)
    alone = [step.name for chains in gpu.PARTS[part]() for chain in chains for step in chain]
    assert {"build-test", "build-probe"} <= set(alone)
    for name in ("gitfast_cuda_test", "gpu_probe"):
        (tmp_path / name).touch()
    phases = gpu.PARTS[part]()
    assert sum(max(sum(step.limit_s for step in chain) for chain in chains) for chains in phases) <= gpu.PART_LIMIT_S
    carried = [step.name for chains in phases for chain in chains for step in chain]
    assert set(alone) - set(carried) == {"build-test", "build-probe"}
    assert len(set(carried)) == len(carried)


def test_all_files_that_are_named_are_there(gpu: ModuleType) -> None:
    assert all((ROOT / "tests" / "cuda" / f"test_{name}.py").exists() for name in gpu.KERNEL_TESTS)
    assert (ROOT / gpu.REFILL[0]).exists()


def test_tests_name_what_fails_as_it_fails(gpu: ModuleType) -> None:
    """They may be stopped before they sum up."""
    (tests,) = (step for chains in gpu.second() for chain in chains for step in chain if step.name == "tests")
    (words,) = (word.split() for word in tests.command if "pytest" in word)
    assert "-v" in words
    assert "-q" not in words


def test_kernels_that_are_profiled_are_there(gpu: ModuleType) -> None:
    """Not those of images, which would take all the launches that are."""
    (profile,) = (step for chains in gpu.second() for chain in chains for step in chain if step.name == "profile")
    (pattern,) = (word.removeprefix("regex:") for word in profile.command if word.startswith("regex:"))
    text = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    kernels = set(re.findall(r"\b(\w+_kernel)\(", text))
    chosen = {name for name in kernels if re.match(pattern, name)}
    names = pattern.removeprefix("^(").removesuffix(")").split("|")
    assert [name for name in names if not any(kernel.startswith(name) for kernel in chosen)] == []
    assert {"linear_kernel", "norm_linear_kernel", "prefix_attention_kernel", "choose_in_part_kernel"} <= chosen
    assert not {"add_layer_norm_kernel", "bias_activation_kernel"} & chosen


def test_the_model_of_a_rehearsal_is_taken_by_all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a way to decode would be rehearsed by another."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import emulated as rehearsal

    assert rehearsal.MODEL.hidden_size == HEAD_DIM * rehearsal.MODEL.num_attention_heads


def test_without_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    environment.pop("OUT", None)
    command = ["bash", BENCHMARKS / "gpu.sh", "first"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (result.returncode, result.stderr) == (1, "gpu.sh: nvidia-smi finds no GPU\n")


def run_both(how: str, out: Path) -> dict[str, str]:
    """Run both parts as ``how`` says; the statuses of their steps."""
    environment = {**ENVIRONMENT, "PYTHONSAFEPATH": "1", "PYTHON": sys.executable, "OUT": str(out)}
    command = ["bash", BENCHMARKS / "gpu.sh", how]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-5000:]
    assert len(list(out.iterdir())) == 6
    return steps_of(out / "first.jsonl") | steps_of(out / "second.jsonl")


@pytest.mark.timeout(900)  # seconds of work, on a machine that may be busy
def test_dry_run(gpu: ModuleType, tmp_path: Path) -> None:
    if reason := emulated.why_not():
        pytest.skip(reason)
    statuses = run_both("dry", tmp_path)
    steps = {step.name: step for part in gpu.PARTS.values() for chains in part() for chain in chains for step in chain}
    assert statuses == {name: "0" if step.dry else "needs a GPU" for name, step in steps.items()}
    log = (tmp_path / "second.txt").read_text()
    chosen = re.findall(r"^ *[\d.]+ tests: tests/cuda/test_(\w+)\.py::(.*)", log, re.MULTILINE)
    assert {name for name, _ in chosen} == set(gpu.KERNEL_TESTS)
    assert [test for _, test in chosen if "emulated" in test] == []
    assert any("[device" in test for _, test in chosen)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rehearsal(tmp_path: Path) -> None:
    if reason := emulated.why_not():
        pytest.skip(reason)
    statuses = run_both("rehearse", tmp_path)
    assert {name for name, status in statuses.items() if status == "0"} >= {
        *("versions", "build", "caption-operations", "caption-persistent", "kernels", "caption-batches"),
        *("tests", "refill", "kernels-vqa", "caption-vqa"),
    }
    lines = [json.loads(line) for line in (tmp_path / "first.jsonl").read_text().splitlines()]
    decoded = {line["way"]: line["decoded_by"] for line in lines if line["kind"] == "Row" and "way" in line}
    assert decoded["gitfast:bfloat16"] == "operations"
    assert decoded["gitfast:bfloat16,decode=persistent"] == "persistent"
