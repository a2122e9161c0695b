"""Names of files in text: escaped where they could be taken for something else, and as they are in JSON.

Names are str as Python has them: bytes that are no UTF-8 are lone surrogates (``os.fsdecode``).
"""

from __future__ import annotations

import hashlib
import os
import re

# Characters that move a terminal's cursor, end a line or turn the direction of text, and lone surrogates.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|t|n|r|x[0-9a-f]{2}|u[0-9a-f]{4})")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\"}
_LONG = {short: char for char, short in _SHORT.items()}


def printable(text: str) -> str:
    """Escape what a terminal would act on: control characters, ends of lines, and bytes that are no UTF-8."""
    return _UNPRINTABLE.sub(_escape, text)


def escape(text: str) -> str:
    """Escape a field of a line of text so that ``unescape`` gives it back: as ``printable``, backslashes too."""
    return printable(text.replace("\\", "\\\\"))


def unescape(field: str) -> str:
    """Undo ``escape``."""
    return _ESCAPED.sub(lambda match: _LONG.get(match[0]) or chr(int(match[1][1:], 16)), field)


def shard_of(name: str, count: int) -> int:
    """Assign a name to one of ``count`` shards, 0 to count - 1, the same on every machine and in every order."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")
