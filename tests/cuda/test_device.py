"""The device query: right with a GPU, and harmless without a driver."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from gitfast import _C
from gitfast.engines.registry import engine_statuses

pytestmark = pytest.mark.skipif(not hasattr(_C, "cuda"), reason="this build has no CUDA part")


def test_there_are_devices_or_a_reason() -> None:
    found = _C.cuda.devices()
    assert bool(found["devices"]) != bool(found["problem"])
    assert found["runtime_version"] >= 12000


def test_devices_are_described() -> None:
    devices = _C.cuda.devices()["devices"]
    if not devices:
        pytest.skip(_C.cuda.devices()["problem"])
    for device in devices:
        assert device["capability"] >= (7, 0)
        assert device["memory"] > 1 << 30
        assert device["multiprocessors"] > 0


def test_the_status_says_what_is_missing() -> None:
    (status,) = (status for status in engine_statuses() if status.name == "cuda")
    found = _C.cuda.devices()
    expected = found["devices"][0]["name"] if found["devices"] else found["problem"]
    assert expected in status.detail


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_module_needs_no_library_of_cuda() -> None:
    done = subprocess.run(["readelf", "--dynamic", _C.__file__], check=True, capture_output=True, text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", done.stdout)
    assert "libc.so.6" in needed
    assert [name for name in needed if re.match("libcuda|libtorch|libc10", name)] == []
