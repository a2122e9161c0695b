"""The engines by name: their availability on this machine, and their construction from a checkpoint."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass

from gitfast import arguments
from gitfast.checkpoints.checkpoint import Checkpoint
from gitfast.engines.base import Engine
from gitfast.errors import EngineError
from gitfast.types import Normalization

ENGINES = ("cpu", "cuda", "reference")
DTYPES = ("float32", "float16", "bfloat16", "int8", "w8a8", "float8")


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """The availability of an engine; ``detail`` names the device it would use, or the part it lacks."""

    name: str
    usable: bool
    detail: str


def engine_statuses() -> list[EngineStatus]:
    """Return the status of every engine. Nothing heavy is imported; asking for CUDA devices wakes their driver."""
    return [engine_status(name) for name in ENGINES]


def engine_status(name: str) -> EngineStatus:
    """Return the status of one engine, by a name in ``ENGINES``."""
    return {"cpu": _cpu_status, "cuda": _cuda_status, "reference": _reference_status}[name]()


def create_engine(
    name: str,
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    prefix_dtype: str = "auto",
    num_threads: int | None = None,
    num_lanes: int | None = None,
    normalization: Normalization | None = None,
) -> Engine:
    """Create an engine by name; "auto" takes the CPU engine, "torch" is another name of "reference".

    ``normalization`` is for engines that take pixels as bytes; the others are given floats, and ignore it.

    Raises:
        EngineError: the engine cannot run here, or not with these dtypes; the message says why.
        ArgumentError: an unknown engine or dtype.
        ValueError: threads or lanes for an engine that has none of its own.
    """
    asked = "reference" if isinstance(name, str) and name == "torch" else name
    name = arguments.choice("engine", asked, ("auto", *ENGINES)).replace("auto", "cpu")
    arguments.choice("dtype", dtype, ("auto", *DTYPES))
    arguments.choice("prefix_dtype", prefix_dtype, ("auto", "int8"))
    status = engine_status(name)
    if not status.usable:
        raise EngineError(f"{name} engine: not usable: {status.detail}")
    if prefix_dtype != "auto" and name != "cuda":
        raise EngineError(f"{name} engine: the dtype of prefixes follows from that of weights; got {prefix_dtype!r}")
    if name == "cpu":
        return _create_cpu(checkpoint, dtype, num_threads, num_lanes)
    if num_lanes is not None:
        raise ValueError(f"num_lanes: the {name} engine has no lanes; the cpu engine does")
    if num_threads is not None:
        raise ValueError(f"num_threads: the {name} engine has no threads of its own; use torch.set_num_threads")
    if name == "cuda":
        return _create_cuda(checkpoint, dtype, prefix_dtype, normalization)
    return _create_reference(checkpoint, dtype)


def _create_cpu(checkpoint: Checkpoint, dtype: str, num_threads: int | None, num_lanes: int | None) -> Engine:
    from gitfast.engines.cpu import DTYPES as SUPPORTED
    from gitfast.engines.cpu import CpuEngine

    chosen = "float32" if dtype == "auto" else dtype
    if chosen not in SUPPORTED:
        raise EngineError(f"cpu engine: takes {', '.join(SUPPORTED)}, not {dtype}")
    return CpuEngine.from_weights(
        checkpoint.config, checkpoint.weights, dtype=chosen, num_threads=num_threads or 0, num_lanes=num_lanes or 0
    )


def _create_cuda(checkpoint: Checkpoint, dtype: str, prefix_dtype: str, normalization: Normalization | None) -> Engine:
    import torch

    from gitfast.engines.cuda.engine import DTYPES as SUPPORTED
    from gitfast.engines.cuda.engine import CudaEngine

    chosen = "bfloat16" if dtype == "auto" else dtype
    if chosen not in SUPPORTED:
        raise EngineError(f"cuda engine: takes {', '.join(SUPPORTED)}, not {dtype}")
    if not torch.cuda.is_available():
        raise EngineError(f"cuda engine: torch {torch.__version__} has no CUDA, or finds no device")
    return CudaEngine.from_weights(
        checkpoint.config,
        checkpoint.weights,
        dtype=chosen,
        prefix_dtype=prefix_dtype,
        normalization=normalization,
        decode=os.environ.get("GITFAST_CUDA_DECODE", "operations"),
    )


def _create_reference(checkpoint: Checkpoint, dtype: str) -> Engine:
    import torch

    from gitfast.engines.reference import ReferenceEngine

    if dtype in ("int8", "w8a8", "float8"):
        raise EngineError(f"reference engine: takes float32, float16, bfloat16, not {dtype}")
    chosen = getattr(torch, "float32" if dtype == "auto" else dtype)
    return ReferenceEngine.from_weights(checkpoint.config, checkpoint.weights, dtype=chosen)


def _cpu_status() -> EngineStatus:
    try:
        from gitfast import _C

        isa, (lanes, threads) = _C.choose_isa(""), _C.choose_crews(0, 0)
        others = ", ".join(name for name in _C.available_isas() if name != isa)
    except (ImportError, ValueError) as error:
        return EngineStatus(name="cpu", usable=False, detail=str(error))
    crews = f"{threads} threads" if lanes == 1 else f"{lanes} lanes of {threads} threads"
    w8a8 = "" if _C.multiplies_bytes(isa) else ", w8a8 is int8"
    return EngineStatus(name="cpu", usable=True, detail=f"{isa} (also here: {others or 'none'}), {crews}{w8a8}")


def _cuda_status() -> EngineStatus:
    try:
        from gitfast import _C
    except ImportError as error:
        return EngineStatus(name="cuda", usable=False, detail=str(error))
    if not hasattr(_C, "cuda"):
        return EngineStatus(name="cuda", usable=False, detail="this build has no CUDA part")
    found = _C.cuda.devices()
    if found["problem"] and not _has_nvidia_driver():
        return EngineStatus(name="cuda", usable=False, detail="no NVIDIA driver")
    if found["problem"]:
        return EngineStatus(name="cuda", usable=False, detail=found["problem"])
    names = ", ".join(device["name"] for device in found["devices"])
    if importlib.util.find_spec("torch") is None:
        return EngineStatus(name="cuda", usable=False, detail=f'{names}, but no torch: pip install "gitfast[torch]"')
    return EngineStatus(name="cuda", usable=True, detail=names)


def _reference_status() -> EngineStatus:
    if importlib.util.find_spec("torch") is None:
        detail = 'torch is not installed: pip install "gitfast[torch]"'
        return EngineStatus(name="reference", usable=False, detail=detail)
    from importlib.metadata import version  # a tenth of the import of this package

    return EngineStatus(name="reference", usable=True, detail=f"torch {version('torch')}")


def _has_nvidia_driver() -> bool:
    """Return whether CUDA's driver library loads. Without it the runtime speaks of an insufficient version."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
