"""Patterns of adapters: matched as ``re`` matches them, without its backtracking."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.checkpoints.files import FormatError
from gitfast.checkpoints.patterns import Budget, Suffix

from support.tiers import examples

PIECES = [
    "a",
    "b",
    ".",
    r"\.",
    "[ab]",
    "[^a]",
    r"\d",
    r"\w",
    "a*",
    "(a|b)+",
    "b?",
    "(ab){1,3}",
    "(a|)",
    "^",
    "$",
    "[a-b]*?",
]


@settings(max_examples=examples(500), deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=6), name=st.text("ab.1", max_size=9))
def test_matches_are_those_of_re(pieces: list[str], name: str) -> None:
    pattern = "".join(pieces)
    if name == "" or pattern == "":
        return
    assert Suffix(pattern).matches(name, Budget()) == (re.match(rf"(.*\.)?({pattern})$", name) is not None)


@pytest.mark.parametrize("pattern", [".*" * 12 + "X", "(a+)+X", "(a|a)*X", "(a*)*X", "(.*)*X"])
def test_work_is_linear(pattern: str) -> None:
    budget = Budget()
    assert not Suffix(pattern).matches("a" * 500, budget)
    with pytest.raises(FormatError, match="too many steps"):
        Suffix(pattern).matches("a" * 500, Budget(100))


@pytest.mark.parametrize("pattern", ["(", "a{4001}", r"(a)\1", "(?<=a)b", "(?i:a)*", "(" * 499 + "a*" + ")" * 499])
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(FormatError, match=r"pattern"):
        Suffix(pattern)
