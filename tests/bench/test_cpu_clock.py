"""The caches that the CPU's clock flushes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gitfast.bench.cpu_clock import last_level_caches

MB = 1 << 20


def write_caches(system: Path, shared_by_cpu: dict[int, str], size: str = "32768K") -> None:
    for cpu, shared in shared_by_cpu.items():
        for index, (of, by) in {"index2": ("1024K", str(cpu)), "index3": (size, shared)}.items():
            folder = system / f"cpu{cpu}" / "cache" / index
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{of}\n")
            (folder / "shared_cpu_list").write_text(f"{by}\n")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells")
def test_every_die_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_caches(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4-5", 5: "4-5"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert last_level_caches(4, tmp_path) == 64 * MB
    assert last_level_caches(1, tmp_path) == 32 * MB
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    assert last_level_caches(2, tmp_path) == 32 * MB


def test_caches_that_the_system_does_not_tell(tmp_path: Path) -> None:
    assert last_level_caches(2, tmp_path) == 32 * MB
    write_caches(tmp_path, dict.fromkeys(range(os.cpu_count() or 1), "0"), size="unknown")
    assert last_level_caches(1, tmp_path) in (1 * MB, 32 * MB)
