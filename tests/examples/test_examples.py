"""Every example runs, and prints what it is there to show."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.paths import EXAMPLES

EXPECTED = {
    "ask.py": ["what is at the top? a purple circle", "what color is the diamond? yellow", "is there a red star? no"],
    "search.py": [
        "greedy:  the word bread in red",
        "prompt:  the word bread in red",
        "choice:  the word bread in blue",
    ],
    "classify.py": ["square.png a large orange square 1.000", "five-red-squares.png five red squares 1.000"],
    "stream.py": ["a| green| cross| to| the| left| of| a| red| triangle|", "a green cross ..."],
    "txtai_captions.py": [
        "one:  a green cross to the left of a red triangle",
        "list: ['a large orange square', 'a purple circle above a yellow diamond']",
        "row:  five-red-squares.png: five red squares",
    ],
    "comfyui_node.py": ["['a picture of five red squares', 'a picture of five red squares']"],
    "batches.py": ["missing.png -> missing.png: No such file", "-> five red squares", "300 captions in"],
}
# Each has tests of its own.
TRIED_ELSEWHERE = ("finetune.py", "service.py", "make_captions_by_git.py", "ray_captions.py", "ray_serve.py")


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*EXPECTED, *TRIED_ELSEWHERE}


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str) -> None:
    command = [sys.executable, EXAMPLES / name]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    for line in EXPECTED[name]:
        assert line in output, output
