from __future__ import annotations

import pytest

from gitfast import ops


def test_the_scalar_kernels_are_always_there():
    assert ops.available_isas()[0] == "scalar"


def test_best_is_chosen_and_the_environment_overrides(monkeypatch):
    monkeypatch.delenv("GITFAST_ISA", raising=False)
    assert ops.choose_isa("") == ops.available_isas()[-1]
    for isa in ops.available_isas():
        monkeypatch.setenv("GITFAST_ISA", isa)
        assert ops.choose_isa("") == isa
    assert ops.choose_isa("scalar") == "scalar"


def test_unknown_names_are_refused_by_the_name_of_their_source(monkeypatch):
    monkeypatch.setenv("GITFAST_ISA", "sse9")
    with pytest.raises(ValueError, match=r"GITFAST_ISA: this machine runs scalar.*; got 'sse9'"):
        ops.choose_isa("")
    with pytest.raises(ValueError, match=r"isa: this machine runs scalar.*; got 'neon'"):
        ops.choose_isa("neon")
