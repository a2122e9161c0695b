"""A parquet file of results, which cannot be continued: lines are written beside it until a run is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from gitfast.checkpoints.files import open_regular
from gitfast.errors import GitfastError
from gitfast.pipeline.folders.outputs import Existing, LineFile, OutputError, Questions, check_regular
from gitfast.pipeline.folders.parquet_pages import PageError, ParquetPages
from gitfast.pipeline.folders.records import JsonRecords
from gitfast.pipeline.folders.walk import Item
from gitfast.results import Result

_ROWS_PER_GROUP = 10_000
_ROWS_AT_ONCE = 1000  # that are read; fewer where they may take more than _BYTES_AT_ONCE, as one text may be in all
_BYTES_AT_ONCE = 1 << 28


class ParquetFile:
    """An ``Output``: a parquet file with the columns file_name, question (of answers), text, score, finish_reason.

    Lines of JSON beside it hold the results until a run is complete; a later run continues them. Names and texts
    that are no UTF-8 are escaped.

    Raises:
        OutputError: as ``LineFile``; pyarrow is not installed; or ``path`` is there and holds something else.
    """

    def __init__(
        self,
        path: str,
        questions: Questions = (None,),
        *,
        existing: Existing = "skip",
        separator: str = ", ",
    ) -> None:
        _import_pyarrow(path)
        check_regular(path)  # a pipe or device would be replaced by a file
        self.path = path
        self._with_question = questions[0] is not None
        self._lines_path = f"{path}.jsonl-part"
        self._changed = os.path.exists(self._lines_path)
        if existing != "overwrite" and os.path.exists(path) and not self._changed:
            self._export()
        self._lines = LineFile(self._lines_path, _Records(), questions, existing=existing, separator=separator)

    def has(self, names: Sequence[str]) -> Sequence[bool]:
        return self._lines.has(names)

    def problem(self, item: Item) -> GitfastError | None:
        return None

    def write(self, item: Item, results: Sequence[Result]) -> None:
        self._changed = True
        self._lines.write(item, results)

    def close(self, *, complete: bool) -> None:
        self._lines.close(complete=complete)
        if complete and (self._changed or not os.path.exists(self.path)):
            self._import()
        if complete or not self._changed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._lines_path)

    def _export(self) -> None:
        """Write the rows of the file as lines."""
        pa, pq = _import_pyarrow(self.path)
        temporary = f"{self._lines_path}.new"
        schema = _schema(pa, with_question=True)
        try:
            with open_regular(self.path, OutputError) as results, open(temporary, "wb") as lines:
                pages = ParquetPages(results)  # before pyarrow parses the metadata: they are bounded here
                with pq.ParquetFile(results) as file:
                    self._check_columns(file.schema_arrow.names, schema.names)
                    for group in range(file.num_row_groups):
                        count = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (pages.check(group) + 1)))
                        for batch in file.iter_batches(batch_size=count, row_groups=[group]):
                            rows = batch.to_pylist()
                            pa.Table.from_pylist(rows, schema=schema)  # as they will be written again
                            if any(row["file_name"] is None for row in rows):
                                raise OutputError(f"{self.path}: not a file of results: a row has no file_name")
                            lines.writelines(map(_line, rows))
            os.replace(temporary, self._lines_path)
        except (OSError, pa.ArrowException, ValueError, TypeError, MemoryError) as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OutputError):
                raise
            reason = error if isinstance(error, PageError) else getattr(error, "strerror", None)
            raise OutputError(f"{self.path}: {reason or 'not a parquet file of results, or damaged'}") from None

    def _check_columns(self, columns: list[str], known: list[str]) -> None:
        """Refuse columns that would be lost."""
        if "file_name" not in columns:
            raise OutputError(f"{self.path}: not a file of results: a row has no file_name")
        for column in columns:
            if column not in known or columns.count(column) > 1:
                raise OutputError(f"{self.path}: not a file of results: its column {column[:100]!r}")

    def _import(self) -> None:
        """Write the lines as the rows of a new file, and put it in place."""
        pa, pq = _import_pyarrow(self.path)
        temporary = f"{self.path}.new"
        try:
            schema = _schema(pa, with_question=self._with_question or self._holds_questions())
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for rows in self._rows():
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            os.replace(temporary, self.path)
        except (OSError, pa.ArrowException) as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise OutputError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from None

    def _holds_questions(self) -> bool:
        """Return whether an earlier run wrote answers: their lines have a key that no text can look like."""
        with open(self._lines_path, "rb") as lines:
            return any(b'"question": ' in line for line in lines)

    def _rows(self) -> Iterator[list[dict[str, Any]]]:
        with open(self._lines_path, "rb") as lines:
            while group := [json.loads(line) for line in islice(lines, _ROWS_PER_GROUP)]:
                yield group


class _Records(JsonRecords):
    """Lines whose names and texts parquet can hold."""

    def line(self, name: str, question: str | None, result: Result) -> bytes:
        others = tuple(dataclasses.replace(other, text=_valid(other.text)) for other in result.alternatives)
        valid = dataclasses.replace(result, text=_valid(result.text), alternatives=others)
        return super().line(_valid(name), question and _valid(question), valid)

    def key_of(self, name: str, question: str | None) -> int:
        return super().key_of(_valid(name), question and _valid(question))

    def keys_of(self, names: Sequence[str], question: str | None) -> list[int]:
        return super().keys_of([_valid(name) for name in names], question and _valid(question))


def _schema(pa: Any, *, with_question: bool) -> Any:
    fields = [("file_name", pa.string())]
    fields += [("question", pa.string())] if with_question else []
    fields += [("text", pa.string()), ("score", pa.float64()), ("finish_reason", pa.string())]
    fields += [("alternatives", pa.list_(pa.struct([("text", pa.string()), ("score", pa.float64())])))]
    return pa.schema(fields)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps({key: value for key, value in row.items() if value is not None}).encode() + b"\n"


def _valid(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _import_pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise OutputError(f'{path}: writing parquet needs pyarrow: pip install "gitfast[parquet]"') from None
    return pa, pq
