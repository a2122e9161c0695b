"""The registry of engines: names, dtypes, threads, and what an engine does not take."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from gitfast import _C
from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines import registry
from gitfast.engines.registry import EngineStatus, create_engine, engine_statuses
from gitfast.errors import EngineError


def status(name: str) -> EngineStatus:
    return next(s for s in engine_statuses() if s.name == name)


def test_every_engine_has_a_status():
    assert [s.name for s in engine_statuses()] == list(registry.ENGINES)
    assert status("cpu").usable
    assert "threads" in status("cpu").detail


@pytest.mark.parametrize("isa", _C.available_isas())
def test_the_status_says_where_w8a8_is_int8(isa, monkeypatch):
    monkeypatch.setenv("GITFAST_ISA", isa)
    without = isa in ("scalar", "avx2", "avx512", "amx", "neon")
    assert status("cpu").detail.startswith(f"{isa} (also here: ")
    assert status("cpu").detail.endswith(", w8a8 is int8") == without


@pytest.mark.parametrize(("name", "kind"), [("auto", "cpu"), ("cpu", "cpu"), ("torch", "reference")])
def test_names(checkpoint_folder, name, kind):
    assert create_engine(name, open_checkpoint(checkpoint_folder)).name == kind


def test_threads_reach_the_cpu_engine(checkpoint_folder):
    engine = create_engine("cpu", open_checkpoint(checkpoint_folder), num_threads=1)
    assert engine.num_threads == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "w8a8"])
def test_dtypes_of_the_cpu_engine(checkpoint_folder, dtype):
    assert create_engine("cpu", open_checkpoint(checkpoint_folder), dtype=dtype).dtype == dtype


def test_dtypes_that_an_engine_does_not_take(checkpoint_folder):
    checkpoint = open_checkpoint(checkpoint_folder)
    with pytest.raises(EngineError, match="cpu engine: takes float32, bfloat16, int8, w8a8, not float16"):
        create_engine("cpu", checkpoint, dtype="float16")
    with pytest.raises(EngineError, match="reference engine: takes float32, float16, bfloat16, not int8"):
        create_engine("reference", checkpoint, dtype="int8")
    with pytest.raises(EngineError, match="reference engine: takes float32, float16, bfloat16, not w8a8"):
        create_engine("reference", checkpoint, dtype="w8a8")
    with pytest.raises(ValueError, match=r"dtype: expected 'auto', 'float32', .*, got 'int4'"):
        create_engine("cpu", checkpoint, dtype="int4")


def test_the_dtype_of_prefixes_is_asked_of_cuda_only(checkpoint_folder):
    for name in ("cpu", "reference"):
        with pytest.raises(EngineError, match=rf"{name} engine: the dtype of prefixes follows .* got 'int8'"):
            create_engine(name, open_checkpoint(checkpoint_folder), prefix_dtype="int8")


def test_without_the_native_library(checkpoint_folder, monkeypatch):
    import gitfast

    monkeypatch.delattr(gitfast, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "gitfast._C", None)
    for name in ("cpu", "cuda"):
        assert not status(name).usable
        with pytest.raises(EngineError, match=rf"{name} engine: not usable: .*_C"):
            create_engine(name, open_checkpoint(checkpoint_folder))
    assert create_engine("reference", open_checkpoint(checkpoint_folder)).name == "reference"


def test_without_torch(checkpoint_folder, monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="torch is not installed"):
        create_engine("reference", open_checkpoint(checkpoint_folder))


def test_a_machine_without_a_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "CUDA driver version is insufficient for CUDA runtime version"
    found = SimpleNamespace(devices=lambda: {"devices": [], "problem": problem})
    monkeypatch.setattr(_C, "cuda", found, raising=False)
    for driver, detail in ((False, "no NVIDIA driver"), (True, problem)):
        monkeypatch.setattr(registry, "_has_nvidia_driver", lambda driver=driver: driver)
        assert registry.engine_status("cuda") == registry.EngineStatus(name="cuda", usable=False, detail=detail)
