"""Lines of a file of results: JSON, or text separated by tabs; and edits of a text before it is written."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gitfast.pipeline.folders.names import escape, unescape
from gitfast.results import Result

# A model's output for letters that it sees and cannot read; checkpoints trained on TextCaps often do.
READ_WORDS = (
    r"""\b(?:with|has|and|that has) (?:the|a) (?:words?|letters?|names?|numbers?|text) (?:"[^"]*"?|'[^']*'?|\S+)"""
    r"""(?: (?:is )?(?:written )?(?:on|in|at) (?:it|(?:the|a|its|his|her|their) \w+))?""",
    r"""\b(?:with a sign )?(?:that|which) (?:says?|reads?) (?:"[^"]*"?|'[^']*'?|\S+)"""
    r"""(?: (?:on|in) (?:it|(?:the|a) \w+))?""",
)


_REMOVED = "\0"  # stands where something was; no tokenizer writes it
_GAP = re.compile(rf"\s*(?:{_REMOVED}\s*)+")
_GAP_BEFORE_MARK = re.compile(rf"\s*(?:{_REMOVED}\s*)+(?=[,.;:!?])")


class RecordError(ValueError):
    """A line is no record of results."""


@dataclass(frozen=True, kw_only=True)
class TextEdit:
    """Edits of a generated text: matches are removed and spaces closed, then prefix and suffix put around it."""

    prefix: str = ""
    suffix: str = ""
    remove: Sequence[re.Pattern[str]] = ()

    def __call__(self, text: str) -> str:
        for pattern in self.remove:
            text = pattern.sub(lambda match: _REMOVED if match[0] else "", text)  # of nothing, nothing is removed
        if _REMOVED in text:
            text = _GAP.sub(" ", _GAP_BEFORE_MARK.sub("", text)).strip()
        return f"{self.prefix}{text}{self.suffix}"

    def apply(self, result: Result) -> Result:
        """Edit the text of a result and its alternatives."""
        if result.error is not None or not (self.prefix or self.suffix or self.remove):
            return result
        others = tuple(dataclasses.replace(other, text=self(other.text)) for other in result.alternatives)
        return dataclasses.replace(result, text=self(result.text), alternatives=others)


class Records(Protocol):
    """A kind of line. Lines are without their end, as bytes; ``key`` tells results of different inputs apart."""

    def line(self, name: str, question: str | None, result: Result) -> bytes:
        """Write a result."""
        ...

    def key(self, line: bytes) -> int:
        """Identify the result of a line: equal to ``key_of`` its name and question. Raises ``RecordError``."""
        ...

    def keys(self, lines: list[bytes]) -> Iterable[int]:
        """Identify the results of many lines, none of them empty."""
        ...

    def key_of(self, name: str, question: str | None) -> int: ...

    def keys_of(self, names: Sequence[str], question: str | None) -> list[int]:
        """Do ``key_of`` for many names."""
        ...

    def is_whole(self, line: bytes) -> bool:
        """Return whether a line lacks its end only."""
        ...

    def may_begin(self, line: bytes, offset: int) -> bool:
        """Return whether a broken-off line, at ``offset`` of its file, may be the beginning of a record."""
        ...

    def text(self, line: bytes) -> str:
        """Read the text of a line that has a key."""
        ...


_BEGIN = b'{"file_name": "'
# A caption as ``line`` writes it, with a name that needs no escape: a million of these are read in a second.
_CAPTION = re.compile(rb'(?m)^\{"file_name": "([^"\\]*)", "text": "[^\n]*\}$')


class JsonRecords:
    """One JSON object a line. ``file_name`` and ``text`` are the names of Hugging Face's image folders."""

    def line(self, name: str, question: str | None, result: Result) -> bytes:
        record: dict[str, Any] = {"file_name": name}
        if question is not None:
            record["question"] = question
        if result.error is not None:
            record["error"] = str(result.error)
        else:
            record |= {"text": result.text, "score": _finite(result.score), "finish_reason": result.finish_reason}
            if result.alternatives:
                record["alternatives"] = [{"text": x.text, "score": _finite(x.score)} for x in result.alternatives]
        return json.dumps(record).encode()

    def key(self, line: bytes) -> int:
        record = self._parse(line)
        return self.key_of(record["file_name"], record.get("question"))

    def keys(self, lines: list[bytes]) -> Iterable[int]:
        names = _CAPTION.findall(b"\n".join(lines))
        if len(names) == len(lines):
            return self.keys_of([name.decode("utf-8", "surrogateescape") for name in names], None)
        return map(self.key, lines)

    def key_of(self, name: str, question: str | None) -> int:
        return hash(name) if question is None else hash((name, question))

    def keys_of(self, names: Sequence[str], question: str | None) -> list[int]:
        return list(map(hash, names)) if question is None else [hash((name, question)) for name in names]

    def is_whole(self, line: bytes) -> bool:
        try:
            self._parse(line)
        except RecordError:
            return False
        return True

    def may_begin(self, line: bytes, offset: int) -> bool:
        return line.startswith(_BEGIN) or _BEGIN.startswith(line)

    def text(self, line: bytes) -> str:
        text = self._parse(line).get("text")
        return text if isinstance(text, str) else ""

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise RecordError("not JSON") from None
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            raise RecordError("not an object with a file_name")
        if not isinstance(record.get("question"), (str, type(None))):
            raise RecordError("its question is not a text")
        return record


class TextRecords:
    """Name, question if there is one, and text, separated by tabs; each escaped, so that a result is one line."""

    def __init__(self, *, with_question: bool) -> None:
        self._fields = 3 if with_question else 2

    def line(self, name: str, question: str | None, result: Result) -> bytes:
        fields = [name, result.text] if question is None else [name, question, result.text]
        return "\t".join(map(escape, fields)).encode()

    def key(self, line: bytes) -> int:
        fields = self._split(line)
        return hash(fields[0]) if len(fields) == 2 else hash((fields[0], fields[1]))

    def key_of(self, name: str, question: str | None) -> int:
        return hash(escape(name)) if question is None else hash((escape(name), escape(question)))

    def keys(self, lines: list[bytes]) -> Iterable[int]:
        return map(self.key, lines)

    def keys_of(self, names: Sequence[str], question: str | None) -> list[int]:
        return [self.key_of(name, question) for name in names]

    def is_whole(self, line: bytes) -> bool:
        return False  # its last field may go on

    def may_begin(self, line: bytes, offset: int) -> bool:
        # Anything may begin a line of text; a file that holds nothing else is somebody else's.
        return offset > 0 and line.count(b"\t") < self._fields

    def text(self, line: bytes) -> str:
        return unescape(self._split(line)[-1])

    def _split(self, line: bytes) -> list[str]:
        fields = line.decode("utf-8", "surrogateescape").split("\t")
        if len(fields) != self._fields:
            raise RecordError(f"expected {self._fields} fields separated by tabs, got {len(fields)}")
        return fields


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
