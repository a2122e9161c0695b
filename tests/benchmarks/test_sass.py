"""The reader of SASS: what is counted, what no kernel may do, and that a changed table is seen."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import pytest

from support.paths import BENCHMARKS, ROOT

LISTING = """
	.headerflags	@"EF_CUDA_SM90"
.text.first_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.NA.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDGSTS.E.BYPASS.128 [R9], desc[UR4][R6.64] ;
        /*0030*/                   ACQBULK ;
        /*0040*/             @UP1  UBLKCP.S.G [UR8], [UR6], UR5 ;
        /*0050*/                   MEMBAR.SC.GPU ;
        /*0060*/                   CCTL.IVALL ;
        /*0070*/               @P0 LDG.E.CONSTANT R4, desc[UR4][R2.64] ;
        /*0080*/                   EXIT ;
.L_x_1:
        /*0090*/                   BRA `(.L_x_1);
        /*00a0*/                   NOP;
        /*00b0*/                   NOP;
.text.second_kernel:
        /*0000*/                   NOP ;
        /*0010*/                   EXIT ;
"""


@pytest.fixture
def sass(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sass

    return sass


def make(sass: ModuleType, *code: str, name: str = "some_kernel<float>", local_bytes: int = 0):
    return sass.Kernel("some.cu", name, 32, local_bytes, code)


def test_opcodes_are_read(sass: ModuleType) -> None:
    code = sass.parse(LISTING)
    assert set(code) == {"first_kernel", "second_kernel"}
    assert code["second_kernel"] == ("NOP", "EXIT")
    kernel = make(sass, *code["first_kernel"])
    assert len(kernel.code) == 10  # without the padding
    assert (kernel.count("MEMBAR"), kernel.count("CCTL.IVALL"), kernel.constant_loads) == (1, 1, 2)
    assert kernel.around_wait == (2, 2)
    assert kernel.streams_weights
    assert make(sass, "LDG.E", "EXIT").around_wait is None


def test_what_no_kernel_may_do(sass: ModuleType) -> None:
    weights = "LDG.E.NA.128.CONSTANT"
    right = [
        make(sass, weights, "ACQBULK", "LDG.E.128"),
        make(sass, "ACQBULK", "LDG.E.128"),
        make(sass, "ACQBULK", weights, name="draw_kernel<float>"),
        make(sass, weights, "EXIT"),
    ]
    assert list(sass.problems(right)) == []
    assert list(sass.warnings(right)) == []
    wrong = [
        make(sass, "ACQBULK", weights),
        make(sass, "ACQBULK", "LDG.E.NA.128"),
        make(sass, "LDG.E.CONSTANT"),
        make(sass, "EXIT", local_bytes=8),
    ]
    found = list(sass.problems(wrong))
    assert len(found) == len(wrong)
    assert "loads no weights ahead of its wait" in found[0]
    assert found[2].startswith("some.cu: some_kernel<float> loads by LDG.E.CONSTANT")
    assert "8 bytes of local memory" in found[3]
    (warning,) = sass.warnings([make(sass, *["FFMA"] * 8001)])
    assert "8001 instructions" in warning


def test_a_changed_table_is_seen(sass: ModuleType) -> None:
    kernel = make(sass, "MEMBAR.SC.GPU", "EXIT")
    table = sass.table([kernel], "13.0.88")
    assert sass.differences(table, sass.table([kernel], "13.0.88")) == []
    changed = sass.table([dataclasses.replace(kernel, code=("EXIT",))], "13.0.88")
    assert any(line.startswith("+") and "some_kernel" in line for line in sass.differences(table, changed))
    assert sass.differences(table, changed.replace("13.0.88", "13.1.0")) == []  # another compiler counts otherwise


def test_the_table_has_every_source(sass: ModuleType) -> None:
    sources = {
        path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if "__global__" in path.read_text(encoding="utf-8")
    }
    table = sass.TABLE.read_text(encoding="utf-8").splitlines()
    assert {line for line in table if line.endswith(".cu")} == {path.name for path in sources}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_table_is_that_of_the_kernels(sass: ModuleType, monkeypatch, capsys) -> None:
    if absent := sass.missing():
        pytest.skip(f"needs {', '.join(absent)}")
    monkeypatch.setattr(sys, "argv", ["sass.py"])
    sass.main()
    assert "kernels" in capsys.readouterr().out
