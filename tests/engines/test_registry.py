from __future__ import annotations

import sys

import pytest

from gitfast.checkpoint import open_checkpoint
from gitfast.engines import registry
from gitfast.engines.registry import EngineStatus, create_engine, engine_statuses
from gitfast.errors import EngineError


def status(name: str) -> EngineStatus:
    return next(s for s in engine_statuses() if s.name == name)


def test_every_engine_has_a_status():
    assert [s.name for s in engine_statuses()] == list(registry.ENGINES)
    assert status("cpu").usable
    assert "threads" in status("cpu").detail


@pytest.mark.parametrize(("name", "kind"), [("auto", "cpu"), ("cpu", "cpu"), ("torch", "reference")])
def test_names(checkpoint_folder, name, kind):
    assert create_engine(name, open_checkpoint(checkpoint_folder)).name == kind


def test_threads_reach_the_cpu_engine(checkpoint_folder):
    engine = create_engine("cpu", open_checkpoint(checkpoint_folder), num_threads=1)
    assert engine.num_threads == 1


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
