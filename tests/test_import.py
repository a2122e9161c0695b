"""Importing gitfast: the modules it loads, its time, and the public names."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import gitfast

from support.processes import run_python

HEAVY = ("torch", "transformers", "av", "huggingface_hub", "PIL", "tokenizers", "matplotlib", "gitfast.bench")


def loaded_after(code: str, modules: tuple[str, ...] = HEAVY) -> set[str]:
    script = f"import sys\n{code}\nprint(*(m for m in {modules} if m in sys.modules))"
    return set(run_python(script, check=True).stdout.split("\n")[-2].split())


def test_import_is_light():
    assert loaded_after("import gitfast, gitfast.cli") == set()


def test_a_caption_needs_neither_torch_nor_the_hub(checkpoint_folder, image_files):
    code = f"import gitfast\nprint(gitfast.load({str(checkpoint_folder)!r}).caption({str(image_files[0])!r}))"
    assert loaded_after(code) == {"PIL", "tokenizers"}


def test_import_is_light_beside_numpy():
    """Modules, not seconds: numpy and the readers come with the first use."""
    assert loaded_after("import gitfast", ("numpy", "gitfast.model", "gitfast.inputs.image")) == set()
    assert loaded_after("import gitfast; gitfast.ImageError", ("numpy", "gitfast.model")) == set()


@pytest.mark.parametrize("before", ["import gitfast._C", ""])
def test_a_sub_interpreter_is_refused(before):
    """One error, not a wait for a lock that the thread itself holds; the main interpreter goes on."""
    code = f"""
import faulthandler
faulthandler.dump_traceback_later(30, exit=True)
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
{before}
other = interpreters.create()
try:
    told = interpreters.run_string(other, "import gitfast\\nimport gitfast._C")
except interpreters.RunFailedError as error:
    told = error
print(told)
interpreters.destroy(other)
import gitfast._C
print(gitfast._C.ThreadPool(1).num_threads)
"""
    refused, alive = run_python(code, check=True).stdout.splitlines()
    assert "ImportError" in refused
    assert "sub-interpreters" in refused or "subinterpreters" in refused  # our words, or from Python 3.12 on its own
    assert alive == "1"


def test_all_names_exist():
    for name in gitfast.__all__:
        assert hasattr(gitfast, name)
    assert set(gitfast.__all__) <= set(dir(gitfast))
    with pytest.raises(AttributeError, match="'gitfast' has no attribute 'lode'"):
        assert gitfast.lode


def test_the_version_is_that_of_the_project_file():
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not in a source tree")
    settings = tomllib.loads(project.read_text())
    assert "version" in settings["project"]["dynamic"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "gitfast.__version__"
    # A build reads it from the source, without importing what the native library would be needed for.
    names = ast.parse(Path(gitfast.__file__).read_text()).body
    (value,) = [x.value for x in names if isinstance(x, ast.Assign) and x.targets[0].id == "__version__"]
    assert ast.literal_eval(value) == gitfast.__version__


def test_the_package_says_it_is_typed():
    assert (Path(gitfast.__file__).parent / "py.typed").is_file()
