"""The devices and peers that can be timed here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from gitfast import _C, ops
from gitfast.bench import cpu_cases, cuda_cases, peers
from gitfast.bench.caption import Report as CaptionReport
from gitfast.bench.caption import Settings
from gitfast.bench.captioners import ENGINES, Way
from gitfast.bench.case import Case
from gitfast.bench.cpu_clock import CpuClock
from gitfast.bench.cuda_clock import CudaClock
from gitfast.bench.machine import gpu_facts, machine_facts
from gitfast.bench.run import Bench
from gitfast.bench.shapes import MODELS
from gitfast.bench.workload import Workload
from gitfast.checkpoints.published import SHAPES, full_name
from gitfast.errors import EngineError

CEILING_ROUNDS = 3


def open_bench(
    device: str,
    kernels: Iterable[str] | None = None,
    models: Iterable[str] | None = None,
    threads: int | None = None,
    compiled: bool = True,
) -> Bench:
    """Get ready to time kernels on ``device``, "cpu" or "cuda".

    None is all kernels of it, the models of all shapes, all CPUs. ``compiled``: also beside what torch.compile makes.

    Raises:
        ValueError: a kernel or model that is not there, or threads of a GPU.
        EngineError: the device cannot be timed here.
    """
    known: dict[str, Callable[..., Iterator[Case]]] = (cpu_cases if device == "cpu" else cuda_cases).KERNELS
    chosen = _known("kernel", kernels, known, f" on {device}")
    shapes = _known("model", map(full_name, MODELS if models is None else models), SHAPES)
    if device == "cuda" and threads is not None:
        raise ValueError("threads: only the cpu has threads")
    torch = peers.import_torch()
    if device == "cuda":
        _check_cuda(torch)
    missing, compiled = _compiler(torch, device) if compiled else ({"torch.compile, FlexAttention": "left out"}, False)
    context, clock, machine = _cpu(torch, threads, compiled) if device == "cpu" else _cuda(torch, compiled)
    cases = (case for kernel in chosen for case in known[kernel](context, shapes))
    return Bench(device, machine, clock, cases, missing, torch)


def _known(what: str, given: Iterable[str] | None, known: Iterable[str], where: str = "") -> list[str]:
    names = list(dict.fromkeys(given if given is not None else known))
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: expected {', '.join(known)}{where}, got {name!r}")
    return names


# Default ways to compare. The first is what the others are compared to.
DEFAULT_WAYS = {
    "cpu": (
        "transformers:float32",
        "openvino:float32",
        "onnxruntime:float32",
        "gitfast:float32",
        "gitfast:bfloat16",
        "gitfast:int8",
        "gitfast:w8a8",
    ),
    "cuda": (
        "transformers:bfloat16",
        "reference:bfloat16",
        "gitfast:bfloat16",
        "gitfast:bfloat16,decode=persistent",
        "gitfast:bfloat16,prefix_dtype=int8",
        "gitfast:int8",
        "gitfast:float8",
        "gitfast:float8,decode=persistent",
    ),
}


def caption_settings(
    device: str,
    ways: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    *,
    lanes: Sequence[int] = (),
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    clients: Sequence[int] = (),
    new_tokens: int = 20,
    rounds: int = 9,
) -> Settings:
    """Check the settings; None is the ways of the device, all dtypes, all CPUs. ``lanes``: gitfast's ways with each.

    Raises:
        ValueError: a way that is not there, threads or lanes of a GPU, or lanes that do not divide the threads.
        EngineError: the device cannot be timed here.
    """
    chosen = [Way.parse(name) for name in dict.fromkeys(ways or DEFAULT_WAYS[device])]
    if dtypes is not None:
        wanted = _known("dtype", dtypes, {way.dtype: way for way in chosen})
        chosen = [way for way in chosen if way.dtype in wanted]
    if device == "cuda":
        if threads:
            raise ValueError("threads: only the cpu has threads")
        if lanes:
            raise ValueError("lanes: only the cpu has lanes")
        _check_cuda(peers.import_torch())
    chosen = [
        dataclasses.replace(way, options=(*way.options, ("lanes", str(count)))) if count else way
        for way in chosen
        for count in (lanes if lanes and way.engine == "gitfast" else [0])
    ]
    threads = threads or [ops.ThreadPool(0).num_threads]
    for count, each in itertools.product(lanes, threads):
        if each % count:
            raise ValueError(f"lanes: expected lanes that divide {each} threads evenly, got {count}")
    return Settings(chosen, device, threads, batches, clients, new_tokens, rounds)


def start_captions(workload: Workload, settings: Settings) -> CaptionReport:
    """Start a report that holds only the ceilings."""
    torch = peers.import_torch()
    packages = {package for way in settings.ways if not way.missing() for package in ENGINES[way.engine].packages}
    machine = machine_facts("numpy", *sorted(packages))
    if settings.device == "cpu":
        pool = ops.ThreadPool(max(settings.threads))
        if torch:
            torch.set_num_threads(pool.num_threads)
        machine |= {"isa": ops.choose_isa(""), "threads": pool.num_threads}
        ceilings = CpuClock(pool, torch).ceilings(CEILING_ROUNDS)
    else:
        machine |= {"gpu": gpu_facts(torch)}
        ceilings = CudaClock(torch).ceilings(CEILING_ROUNDS)
    return CaptionReport(
        settings.device, machine, workload.name, workload.random, settings.new_tokens, settings.rounds, ceilings
    )


def _native_cuda() -> Any | None:
    return getattr(_C, "cuda", None)


def _check_cuda(torch: Any | None) -> None:
    if not (cuda := _native_cuda()):
        raise EngineError("device: cuda cannot be timed: this build has no CUDA part")
    if problem := cuda.devices()["problem"]:
        raise EngineError(f"device: cuda cannot be timed: {problem}")
    if not torch or not torch.cuda.is_available():
        raise EngineError("device: cuda cannot be timed: it takes a torch with CUDA")


def _compiler(torch: Any | None, device: str) -> tuple[dict[str, str], bool]:
    """Return the missing peers with the reasons, and whether torch.compile works."""
    if not torch:
        return {"torch": 'not installed: pip install "gitfast[torch]"'}, False
    problem = peers.compile_problem(torch, device)
    return ({"torch.compile, FlexAttention": problem}, False) if problem else ({}, True)


def _cpu(torch: Any | None, threads: int | None, compiled: bool) -> tuple[cpu_cases.Context, CpuClock, dict[str, Any]]:
    pool = ops.ThreadPool(threads or 0)
    if torch:
        torch.set_num_threads(pool.num_threads)
    machine = machine_facts("numpy", *(["torch"] if torch else []))
    machine |= {"isa": ops.choose_isa(""), "threads": pool.num_threads}
    flex = peers.compiled_flex(torch) if compiled else None
    return cpu_cases.Context(pool, torch, flex), CpuClock(pool, torch), machine


def _cuda(torch: Any, compiled: bool) -> tuple[cuda_cases.Context, CudaClock, dict[str, Any]]:
    context = cuda_cases.Context(_native_cuda(), torch, torch.Generator("cuda").manual_seed(0))
    if compiled:
        compiler, flex = partial(torch.compile, dynamic=True), peers.compiled_flex(torch)
        context = dataclasses.replace(context, compile=compiler, flex=flex)
    return context, CudaClock(torch), machine_facts("numpy", "torch") | {"gpu": gpu_facts(torch)}
