"""Regular expressions from a file, matched without backtracking: in steps that grow with pattern times text.

Python's parser reads a pattern, and the states of its automaton are followed side by side. Constructs that
need backtracking (references to groups, looking ahead and behind) are refused.
"""

from __future__ import annotations

import re
import reprlib
import warnings
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from gitfast.checkpoints.files import FormatError

_MAX_PATTERN = 1_000  # characters
_MAX_STATES = 4_000
MAX_STEPS = 5_000_000  # for all matches of a file; the layers and patterns of a large adapter take a tenth
_REPEATS = re.compile(r"[*+?{|(]")
_CATEGORIES = {
    ops.CATEGORY_DIGIT: str.isdecimal,
    ops.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    ops.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    ops.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}
_MATCH = 0  # the state in which all of the pattern has matched


class Budget:
    """Steps that all matches together may take."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise FormatError("its patterns take too many steps to match")


class Suffix:
    """A pattern for the end of a dotted name, as peft matches: ``(.*\\.)?(pattern)$``.

    Raises:
        FormatError: the pattern is none, or needs backtracking.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._states: list[tuple[Any, ...]] = [("match",)]
        if len(pattern) > _MAX_PATTERN:
            raise FormatError(f"pattern {reprlib.repr(pattern)} is longer than {_MAX_PATTERN} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parsed = parser.parse(pattern)
                self._literal = None if _REPEATS.search(pattern) else re.compile(rf"(?:.*\.)?(?:{pattern})$")
                self._start = _MATCH if self._literal else self._sequence(parsed, _MATCH)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise FormatError(f"pattern {reprlib.repr(pattern)}: {error}") from None

    def matches(self, name: str, budget: Budget) -> bool:
        """Return whether ``name``, or a part of it behind a dot, matches from there to its end."""
        budget.spend(1)
        if self._literal is not None:
            return self._literal.match(name) is not None
        live: set[int] = set()
        for i, character in enumerate(name):
            if i == 0 or name[i - 1] == ".":
                self._follow(self._start, i, name, live)
            budget.spend(1 + len(live))
            following: set[int] = set()
            for state in live:
                kind, *rest = self._states[state]
                if kind == "take" and _takes(rest[0], character):
                    self._follow(rest[1], i + 1, name, following)
            live = following
        if name.endswith("."):
            self._follow(self._start, len(name), name, live)
        return _MATCH in live

    def _follow(self, start: int, position: int, name: str, live: set[int]) -> None:
        """Add the states reached from a state without taking a character."""
        waiting = [start]
        while waiting:
            state = waiting.pop()
            if state in live:
                continue
            live.add(state)
            kind, *rest = self._states[state]
            if kind == "split" or (kind == "at" and position == (0 if rest[0] else len(name))):
                waiting += rest[-1]

    def _add(self, *state: Any) -> int:
        if len(self._states) >= _MAX_STATES:
            raise FormatError(f"pattern {reprlib.repr(self._pattern)} takes more than {_MAX_STATES} states")
        self._states.append(state)
        return len(self._states) - 1

    def _sequence(self, items: Any, then: int) -> int:
        for op, value in reversed(list(items)):
            then = self._item(op, value, then)
        return then

    def _item(self, op: Any, value: Any, then: int) -> int:
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            return self._add("take", (op, value), then)
        if op is ops.BRANCH:
            return self._add("split", [self._sequence(branch, then) for branch in value[1]])
        if op is ops.SUBPATTERN and not (value[1] or value[2]):
            return self._sequence(value[3], then)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            least, most, repeated = value
            return self._repeat(least, most, repeated, then)
        if op is ops.AT and value in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING, ops.AT_END, ops.AT_END_STRING):
            return self._add("at", value in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING), [then])
        raise FormatError(f"pattern {reprlib.repr(self._pattern)}: {op} is not supported")

    def _repeat(self, least: int, most: Any, items: Any, then: int) -> int:
        if least > _MAX_STATES or (most is not ops.MAXREPEAT and most > _MAX_STATES):
            raise FormatError(f"pattern {reprlib.repr(self._pattern)} repeats too often")
        if most is ops.MAXREPEAT:
            loop = self._add("split", [then])
            self._states[loop][1].append(self._sequence(items, loop))
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = self._add("split", [end, self._sequence(items, then)])
        for _ in range(least):
            self._add("split", [])  # counts copies of what takes no state
            then = self._sequence(items, then)
        return then


def _takes(test: tuple[Any, Any], character: str) -> bool:
    op, value = test
    if op is ops.ANY:
        return character != "\n"
    if op is ops.IN:
        inside = any(_takes(item, character) for item in value if item[0] is not ops.NEGATE)
        return inside != (value[0][0] is ops.NEGATE)
    if op is ops.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if op is ops.CATEGORY:
        return bool(_CATEGORIES[value](character))
    return bool((ord(character) == value) == (op is ops.LITERAL))
