"""Run the checks of a GPU that is lent for minutes, step by step: see gpu.sh.

A step that fails or hangs loses only itself. Rows are added to a file as they come; beside it stand one log and a tar
that is written anew after every step, so that whatever stops a part leaves what was measured. A part ends in time:
steps for which no time is left are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / "build" / "carried"  # programs built elsewhere, with their runtime in them
PACKAGES = CARRIED / "python"  # what the build needs, in versions that suit: others may be there
PART_LIMIT_S, LEAST_S, GRACE_S = 270, 5, 3
ARCHITECTURE = "90a"

PYTHON = sys.executable
BENCH = (PYTHON, "-m", "gitfast", "bench")
EMULATED = (PYTHON, "benchmarks/emulated.py")
CASES = ("--json", "{rows}", "--device", "cuda")
CAPTION = ("caption", *CASES, "--model", "git-base", "--rounds", "7")
FAST_CAPTION = ("caption", *CASES, "--model", "git-base", "--rounds", "1", "--new-tokens", "3")
REFILL = ("benchmarks/refill_cuda.py", "--json", "{scratch}/refill.json")
SMALL_REFILL = ("--images", "4", "--rows", "2", "--new-tokens", "6", "--rounds", "1", "--device", "cpu")
CHECK_ARGUMENTS = (PYTHON, "-c", "import sys; from gitfast import cli; cli._parser().parse_args(sys.argv[1:])")
# The tests of a device by name: those of the emulation would build it first, for minutes.
ON_DEVICE = "device and not emulated"
KERNEL_TESTS = (
    *("device", "arguments", "norm", "activation", "embed", "attention", "linear", "select", "search", "functions"),
    *("encoder", "image_sizes", "engine", "persistent_engine", "refill", "concurrent_calls"),
)


@dataclass(frozen=True)
class Step:
    """A command, its seconds at most, and what stands for it in a rehearsal and in a dry run.

    A rehearsal does the same work on the emulation, where that can; a dry run only sees that the command can be run.
    In commands {rows} is the file of rows, {scratch} a folder whose files go into the tar, and {program:NAME} a
    program that was carried or is built by a step before.
    """

    name: str
    limit_s: int
    command: Sequence[str]
    rehearsal: Sequence[str] | None = None
    dry: Sequence[str] | None = None


def shell(text: str) -> tuple[str, ...]:
    return ("bash", "-c", text)


def bench_step(name: str, limit_s: int, arguments: Sequence[str], rehearsal: Sequence[str]) -> Step:
    dry = (*CHECK_ARGUMENTS, "bench", *arguments)
    return Step(name, limit_s, (*BENCH, *arguments), (*EMULATED, "bench", *rehearsal), dry)


def caption_step(name: str, limit_s: int, *arguments: str, rehearsal: Sequence[str] | None = None) -> Step:
    """Captions of git-base. Every way to decode has a process of its own: what one breaks the others do not see."""
    return bench_step(name, limit_s, (*CAPTION, *arguments), (*FAST_CAPTION, *(rehearsal or arguments)))


def build() -> Step:
    command = f"CMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}-real GITFAST_CUDA=on {PYTHON} setup.py build_ext --inplace"
    skip = f"{PYTHON} -c 'from gitfast import _C; assert _C.cuda.devices()[\"devices\"]' 2>/dev/null"
    packages = f"PYTHONPATH={shlex.quote(str(PACKAGES))}:$PYTHONPATH"
    versions = "import pybind11, setuptools; print(pybind11.__version__, setuptools.__version__)"
    needs = f'{packages} {PYTHON} -c "{versions}" && cmake --version && ninja --version'
    steps = f"{skip} && echo built before || {{ {needs} && {packages} {command}; }}"
    return Step("build", 80, shell(steps), (*EMULATED, "--build"), shell(needs))


def programs_to_build() -> list[Step]:
    """Return the steps that build the programs that were not carried."""
    steps = []
    if not (CARRIED / "gitfast_cuda_test").exists():
        target = "cmake --build build/cmake --target gitfast_cuda_test && mkdir -p build/carried"
        steps.append(Step("build-test", 60, shell(f"{target} && cp build/cmake/gitfast_cuda_test build/carried/")))
    if not (CARRIED / "gpu_probe").exists():
        steps.append(Step("build-probe", 40, shell(build_probe())))
    return steps


def build_probe() -> str:
    nvcc = f"nvcc -arch=sm_{ARCHITECTURE} -std=c++17 -O3 -cudart static"
    return f"mkdir -p build/carried && {nvcc} -o build/carried/gpu_probe benchmarks/gpu_probe.cu"


Phase = tuple[Sequence[Step], ...]  # chains of steps that run beside each other


def first() -> list[Phase]:
    test = Step("device-test", 20, ("{program:gitfast_cuda_test}",))
    probe = Step("probe", 30, ("{program:gpu_probe}", "{rows}"))
    say = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    found = "from gitfast import _C; found = _C.cuda.devices(); print(found); assert found['devices']"
    kernels = ("kernels", *CASES, "--model", "git-base", "--kernel")
    facts = f"nvidia-smi; nvcc --version; {PYTHON} -c '{say}'"
    # Beside the build: what is imported here is read from a cache by all that follows.
    versions = Step("versions", 60, shell(f"{facts}; {PYTHON} -c 'import transformers'"), *[(PYTHON, "-c", say)] * 2)
    timed = [
        Step("devices", 10, (PYTHON, "-c", found)),
        caption_step(
            "caption-operations", 40, "--way", "transformers:bfloat16", "reference:bfloat16", "gitfast:bfloat16"
        ),
        caption_step("caption-persistent", 25, "--way", "gitfast:bfloat16,decode=persistent"),
        bench_step(
            "kernels",
            60,
            (*kernels, "linear", "norm_linear", "head_select", "prefix_attention", "--rounds", "5", "--no-compile"),
            (*kernels, "linear", "norm_linear", "--rounds", "1", "--no-compile"),
        ),
        caption_step(
            "caption-batches",
            40,
            *("--batch", "8", "64", "--way", "transformers:bfloat16", "gitfast:bfloat16", "gitfast:float8"),
            rehearsal=("--batch", "2", "--way", "transformers:bfloat16", "gitfast:bfloat16"),
        ),
    ]
    return _beside_build([test, probe], timed, [versions])


def second() -> list[Phase]:
    tests = " ".join(f"tests/cuda/test_{name}.py" for name in KERNEL_TESTS)
    parallel = f"$({PYTHON} -c 'import xdist' 2>/dev/null && echo -n 6 --dist loadfile)"
    pytest = f"{PYTHON} -m pytest -p no:cacheprovider -o addopts=--import-mode=importlib"
    chosen = f"{tests} -m 'not slow' -k '{ON_DEVICE}'"
    collect = shell(f"{pytest} -q --collect-only {chosen}")
    sanitizer = ("compute-sanitizer", "--error-exitcode", "1", "--tool")
    sanitizers = [
        Step(f"sanitizer-{tool}", limit, (*sanitizer, tool, "{program:gitfast_cuda_test}"))
        for tool, limit in (("memcheck", 40), ("racecheck", 25), ("synccheck", 25))
    ]
    kernels = ("kernels", *CASES, "--no-compile", "--kernel", "prefix_attention", "--model", "git-base-vqav2")
    caption = ("caption", *CASES, "--model", "git-base-vqav2")
    # The kernels of a step, 33 of 35: its norms have the name of those of images, which come first and are as many.
    profiler = ("ncu", "--kernel-name", "regex:^(linear|norm_linear|prefix_attention|choose|advance_search)")
    profiler += ("--launch-count", "40", "--kill", "yes", "--clock-control", "none", "--set", "basic")
    few = ("--model", "git-base", "--rounds", "1", "--new-tokens", "3", "--way", "gitfast:bfloat16")
    timed = [
        # Each outcome as it comes: whatever stops the tests leaves no summary.
        Step("tests", 50, shell(f"{pytest} -v {parallel} {chosen}"), collect, collect),
        Step("refill", 40, (PYTHON, *REFILL), (*EMULATED, *REFILL, *SMALL_REFILL), (PYTHON, REFILL[0], "--help")),
        bench_step("kernels-vqa", 25, (*kernels, "--rounds", "5"), (*kernels, "--rounds", "1")),
        bench_step(
            "caption-vqa",
            30,
            (*caption, "--rounds", "5", "--way", "transformers:bfloat16", "gitfast:bfloat16"),
            (*caption, "--rounds", "1", "--new-tokens", "3", "--way", "gitfast:bfloat16"),
        ),
        Step("profile", 30, (*profiler, *BENCH, "caption", *CASES, *few)),
    ]
    return _beside_build(sanitizers, timed)


def _beside_build(programs: list[Step], timed: list[Step], more: Sequence[Step] = ()) -> list[Phase]:
    """Programs that were carried run while the library is built; others are built when all that is timed is done."""
    builders = programs_to_build()
    if builders:
        return [([build()], more), (timed,), ([*builders, *programs],)]
    return [([build()], programs, more), (timed,)]


PARTS = {"first": first, "second": second}


@dataclass
class Part:
    """One part as it runs: where its results go, and what became of its steps."""

    name: str
    out: Path
    how: str  # the field of a step whose command is run: "command", "rehearsal" or "dry"
    limit_s: float
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="gitfast-gpu-")))
    started: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.rows, self.log = self.out / f"{self.name}.jsonl", self.out / f"{self.name}.txt"
        self.tar = self.out / f"{self.name}.tar.gz"
        for file in (self.rows, self.log, self.tar):
            file.unlink(missing_ok=True)

    def run(self, phases: Sequence[Phase]) -> int:
        """All steps. Returns the exit status: 1 when any failed."""
        try:
            for chains in phases:
                with ThreadPoolExecutor(len(chains)) as pool:
                    list(pool.map(self._chain, chains))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.say("gpu", f"{self.name}: {self._elapsed():.0f} s; failed: {', '.join(self.failed) or 'none'}")
        return 1 if self.failed else 0

    def _chain(self, steps: Sequence[Step]) -> None:
        for step in steps:
            status, seconds = self._step(step)
            with self.lock:
                if status not in ("0", "needs a GPU"):
                    self.failed.append(step.name)
                row = {"kind": "Step", "name": step.name, "status": status, "seconds": round(seconds, 1)}
                with self.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                self._write_tar()
            self.say(step.name, f"status {status}, {seconds:.1f} s")

    def _step(self, step: Step) -> tuple[str, float]:
        """Its exit status or why it did not end, and its seconds."""
        command = getattr(step, self.how)
        if command is None:
            self.say(step.name, f"needs a GPU: {' '.join(step.command)}")
            return "needs a GPU", 0.0
        left = self.limit_s - self._elapsed()
        limit = min(step.limit_s, left) if self.how == "command" else left
        if left < LEAST_S:
            return "no time left", 0.0
        start = time.monotonic()
        status = self._execute(step.name, [self._filled(word) for word in command], limit)
        return status, time.monotonic() - start

    def _execute(self, name: str, command: list[str], limit: float) -> str:
        self.say(name, "$ " + " ".join(command))
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
        except OSError as error:
            return f"cannot run: {error.strerror}"
        reader = threading.Thread(target=self._copy_output, args=(name, process), daemon=True)
        reader.start()
        try:
            process.wait(limit)
            status = str(process.returncode)
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
            _end(process)
        reader.join(GRACE_S)  # a child that lives on may hold the pipe open
        return status

    def _copy_output(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.say(name, line.rstrip("\n"))

    def _filled(self, word: str) -> str:
        word = re.sub(r"{program:(\w+)}", lambda match: str(CARRIED / match[1]), word)
        values = {"{rows}": self.rows.resolve(), "{scratch}": self.scratch}
        for key, value in values.items():
            word = word.replace(key, str(value))
        return word

    def say(self, name: str, text: str) -> None:
        line = f"{self._elapsed():6.1f} {name}: {text}"
        with self.log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def _write_tar(self) -> None:
        """All results so far in one file. A tar that is there is whole at every moment."""
        made = self.scratch.with_suffix(".tar.gz")
        with tarfile.open(made, "w:gz") as tar:
            for file in (self.rows, self.log, *sorted(self.scratch.iterdir())):
                if file.exists():
                    tar.add(file, f"{self.name}/{file.name}")
        beside = self.tar.with_suffix(".new")
        shutil.move(made, beside)
        beside.replace(self.tar)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started


def _end(process: subprocess.Popen[str]) -> None:
    """The process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def results_folder() -> Path:
    if out := os.environ.get("OUT"):
        return Path(out)
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        sys.exit("gpu.sh: nvidia-smi finds no GPU")
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def carry() -> int:
    """Build what need not be built where the GPU is, for it."""
    configure = "cmake -S . -B build/carrying -G Ninja -DGITFAST_BINDINGS=OFF -DGITFAST_CUDA=on"
    configure += f" -DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}-real"
    target = "cmake --build build/carrying --target gitfast_cuda_test && mkdir -p build/carried"
    commands = [f"{configure} && {target} && cp build/carrying/gitfast_cuda_test build/carried/", build_probe()]
    install = f"{PYTHON} -m pip install --quiet --upgrade --target {shlex.quote(str(PACKAGES))}"
    commands.append(f"{install} 'pybind11>=3.0' 'setuptools>=77'")  # as pyproject.toml has them
    return max(subprocess.run(shell(command), cwd=ROOT, check=False).returncode for command in commands)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=[*PARTS, "rehearse", "dry", "carry"])
    what = parser.parse_args().what
    if what == "carry":
        return carry()
    if what in PARTS:
        return Part(what, results_folder(), "command", PART_LIMIT_S).run(PARTS[what]())
    how = "rehearsal" if what == "rehearse" else "dry"
    out = Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix=f"gitfast-{how}-"))
    codes = [Part(name, out, how, limit_s=1800).run(phases()) for name, phases in PARTS.items()]
    print(f"results in {out}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
