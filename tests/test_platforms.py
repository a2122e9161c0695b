"""Without what POSIX alone has: the package imports, captions a folder, and goes on where a run ended."""

from __future__ import annotations

from support.paths import EXAMPLES
from support.processes import run_python

# What Windows' `os` and `asyncio` lack, taken away once other packages have what they need of it.
WITHOUT_POSIX = """
import asyncio, concurrent.futures, importlib, logging, multiprocessing, os, pkgutil, subprocess, sys, tempfile
import huggingface_hub, numpy, PIL.Image, safetensors, tokenizers, tqdm
from huggingface_hub import hf_hub_download

for name in ("register_at_fork", "sched_getaffinity", "O_CLOEXEC", "O_NONBLOCK", "fchmod", "fork", "set_blocking"):
    delattr(os, name)
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
sys.platform = "win32"
sys.modules["msvcrt"] = type(sys)("msvcrt")
sys.modules["msvcrt"].LK_NBLCK = 2
sys.modules["msvcrt"].locking = lambda descriptor, mode, size: None
import gitfast.platforms
sys.platform = "linux"  # other packages are Linux' own

import gitfast
from gitfast.cli import main
"""


def test_a_folder_is_captioned_without_posix(tmp_path):
    out = tmp_path / "captions.jsonl"
    code = WITHOUT_POSIX + "sys.exit(main(sys.argv[1:]))"
    arguments = ["caption", EXAMPLES / "images", "--model", "git-tiny", "--out", out]
    first = run_python(code, *arguments)
    assert first.returncode == 0, first.stderr
    lines = out.read_text().splitlines()
    assert len(lines) == 6
    out.write_text("\n".join(lines[:2]) + "\n")
    again = run_python(code, *arguments)
    assert again.returncode == 0, again.stderr
    assert sorted(out.read_text().splitlines()) == sorted(lines)
    replaced = run_python(code, *arguments, "--existing", "append")
    assert replaced.returncode == 0, replaced.stderr
    assert len(out.read_text().splitlines()) == 6
