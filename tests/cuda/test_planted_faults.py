"""Run the kernels under sanitizers, as they are and with every fault planted: the former are clean, the latter found.

The fast tier plants two faults that the emulation finds without a sanitizer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.cuda import emulated
from support.cuda.faults import FAULTS, KERNELS, MANY_BLOCKS
from support.paths import ROOT

SANITIZERS = ("address", "thread")
# A fault takes seconds to compile: CI plants every eighth. Plant all faults of a kernel that you change.
NAMES = list(FAULTS)[:: 8 if "CI" in os.environ else 1]
FOUND_BY_EMULATION = ("a warp left out", "the previous kernel not waited for")
WORKERS = 2  # each with its own tree of sources


@dataclass(frozen=True)
class Job:
    """The small cases of a kernel under a sanitizer, with a fault planted or as they are."""

    sanitizer: str
    kernel: str
    fault: str | None = None


@dataclass
class Outcome:
    """The outcome of a job."""

    said: str = ""
    returncode: int = 0
    skipped: str = ""
    problem: Exception | None = None


def job_of(parameters: dict[str, str]) -> Job:
    """Return the job of a test with these parameters."""
    if "name" not in parameters:
        return Job(parameters["sanitizer"], parameters["kernel"])
    fault = FAULTS[parameters["name"]]
    return Job(fault.sanitizer, fault.kernel, parameters["name"])


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Outcome]:
    """Outcomes of all jobs whose tests are to run, done two at a time from either end of the list: a tree is best left
    at one kernel, where one file is compiled for a fault, and at one sanitizer."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    mine = [item for item in request.session.items if item.path == Path(__file__) and isinstance(item, pytest.Function)]
    mine = [item for item in mine if "outcomes" in item.fixturenames]
    jobs = {job_of(item.callspec.params) for item in mine}
    waiting = deque(sorted(jobs, key=lambda job: (job.sanitizer, list(KERNELS).index(job.kernel), job.fault or "")))
    done: dict[Job, Outcome] = {}

    def work(sources: Path, from_the_left: bool) -> None:
        cases: dict[str, emulated.SmallCases] = {}  # by sanitizer
        while waiting:
            try:
                job = waiting.popleft() if from_the_left else waiting.pop()
            except IndexError:  # the other was faster
                break
            done[job] = run(job, sources, cases)
        for process in cases.values():
            process.close()

    threads = []
    for i in range(WORKERS):
        sources = tmp_path_factory.mktemp("faults")
        shutil.copy(ROOT / "CMakeLists.txt", sources)
        shutil.copytree(ROOT / "csrc", sources / "csrc")
        threads.append(threading.Thread(target=work, args=(sources, i % 2 == 0)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def run(job: Job, sources: Path, cases: dict[str, emulated.SmallCases]) -> Outcome:
    """A job in a tree of its own, which is left as it was."""
    if emulated.runtime_of(job.sanitizer) is None:
        return Outcome(skipped=f"the compiler comes without its {job.sanitizer} sanitizer")
    fault = FAULTS[job.fault] if job.fault else None
    source = sources / (fault.file if fault and fault.file else KERNELS[job.kernel])
    original = source.read_text(encoding="utf-8")
    if fault:
        source.write_text(fault.plant(original), encoding="utf-8")
    try:
        module = emulated.build(sources, sources / job.sanitizer, job.sanitizer, few_head_dims=True)
        if job.sanitizer not in cases:
            cases[job.sanitizer] = emulated.SmallCases(job.sanitizer, sources)
        returncode, said = cases[job.sanitizer].run(module, job.kernel)
    except (subprocess.SubprocessError, ValueError) as problem:
        return Outcome(problem=problem, said=str(getattr(problem, "stdout", "")))
    finally:
        if fault:
            source.write_text(original, encoding="utf-8")
    if "unexpected memory mapping" in said:
        return Outcome(skipped="the thread sanitizer does not run with this kernel's address space randomization")
    return Outcome(said, returncode)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_place(name: str) -> None:
    """Change FAULTS with the kernel."""
    fault = FAULTS[name]
    text = (ROOT / (fault.file or KERNELS[fault.kernel])).read_text(encoding="utf-8")
    assert fault.plant(text) != text


@pytest.mark.parametrize("name", FOUND_BY_EMULATION)
def test_planted_fault_is_found_by_the_emulation(name: str, emulation_file: Path, tmp_path: Path) -> None:
    fault = FAULTS[name]
    source, changed = ROOT / KERNELS[fault.kernel], tmp_path / "changed.cu"
    changed.write_text(fault.plant(source.read_text(encoding="utf-8")), encoding="utf-8")
    cases = emulated.SmallCases("", tmp_path)
    try:
        module = emulated.replace_source(emulation_file.parent, source, changed)
        returncode, said = cases.run(module, fault.kernel)
    finally:
        cases.close()
    assert returncode != 0
    assert re.search(fault.found, said), said


def ended(outcome: Outcome) -> Outcome:
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    if outcome.problem:
        pytest.fail(f"{outcome.problem}\n{outcome.said}")
    return outcome


@pytest.mark.slow
@pytest.mark.timeout(3000)  # the first test waits for all of them
@pytest.mark.parametrize(
    ("kernel", "sanitizer"), [(k, s) for k in KERNELS for s in SANITIZERS if s == "address" or k not in MANY_BLOCKS]
)
def test_kernels_are_clean_under_sanitizers(outcomes: dict[Job, Outcome], kernel: str, sanitizer: str) -> None:
    outcome = ended(outcomes[Job(sanitizer, kernel)])
    assert outcome.returncode == 0, outcome.said


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", NAMES)
def test_planted_fault_is_found(outcomes: dict[Job, Outcome], name: str) -> None:
    outcome = ended(outcomes[job_of({"name": name})])
    assert outcome.returncode != 0
    assert re.search(FAULTS[name].found, outcome.said), outcome.said
