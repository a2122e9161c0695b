"""Check the arguments that tasks share. Each error names its argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

from gitfast.errors import ArgumentError

# A prompt that fills the 1,024 text positions of the largest model has a tenth of this.
MAX_TEXT_CHARS = 100_000
_MAX_BITS = 10_000  # Python refuses to print integers of 4,300 digits


def integer(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return ``value``, which may be of any integer type but bool, as an int."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ArgumentError(f"{name}: expected an integer, got {shown(value)}")
    if number.bit_length() > _MAX_BITS:
        raise ArgumentError(f"{name}: expected an integer of a few digits, got one of {number.bit_length()} bits")
    if minimum is not None and number < minimum:
        raise ArgumentError(f"{name}: expected at least {minimum}, got {shown(number)}")
    if maximum is not None and number > maximum:
        raise ArgumentError(f"{name}: expected at most {maximum}, got {shown(number)}")
    return number


def real(name: str, value: Any) -> float:
    """Return ``value``, which may be of any real type but bool, as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name}: expected a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{name}: expected a number that a float can hold, got {shown(value)}") from None


def flag(name: str, value: Any) -> bool:
    """Return ``value``, which must be True or False."""
    if isinstance(value, bool):
        return value
    raise ArgumentError(f"{name}: expected True or False, got {shown(value)}")


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value``, which must be one of two or more texts."""
    if not isinstance(value, str) or value not in choices:  # an array would be compared number by number
        *others, last = map(repr, choices)
        raise ArgumentError(f"{name}: expected {', '.join(others)} or {last}, got {shown(value)}")
    return value


def text(name: str, value: Any) -> str:
    """Return ``value``, which must be a text that is not absurdly long."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name}: expected a text, got {type(value).__name__}")
    if len(value) > MAX_TEXT_CHARS:
        raise ArgumentError(f"{name}: expected at most {MAX_TEXT_CHARS} characters, got {len(value)}")
    return value


def texts(name: str, values: Any) -> list[str]:
    """Return ``values``, which must be a list or tuple of texts, as a list."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ArgumentError(f"{name}: expected a list of texts, got {shown(values)}")
    return [text(f"{name}[{index}]", value) for index, value in enumerate(values)]


def shown(value: Any) -> str:
    """Describe a value for an error message: itself where that is short, else its type."""
    is_long = (isinstance(value, str) and len(value) > 100) or (
        isinstance(value, int) and value.bit_length() > _MAX_BITS
    )
    if isinstance(value, (str, int, float, type(None))) and not is_long and len(repr(value)) <= 100:
        return repr(value)
    return f"a value of type {type(value).__name__}"
