"""Parquet files of results, as a later run finds them: continued, or refused and left as they were."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from gitfast.pipeline.folders import parquet, parquet_pages
from gitfast.pipeline.folders.outputs import OutputError
from gitfast.pipeline.folders.parquet import ParquetFile
from gitfast.pipeline.folders.walk import Item
from gitfast.results import Result

from support.bounded import outcome
from support.parquet import with_page_sizes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROW = {"file_name": "a.png", "text": "a cat", "score": -1.0, "finish_reason": "stop", "alternatives": None}
RESULT = Result(text="a dog", token_ids=(1,), score=-2.0, finish_reason="stop")


def parquet_of(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def run(path: Path, name: str, question: str | None = None) -> list[dict[str, Any]]:
    output = ParquetFile(str(path), (question,))
    output.write(Item(name, name, name), [RESULT])
    output.close(complete=True)
    return pq.read_table(path).to_pylist()


def refusal(path: Path, data: bytes) -> str:
    """The error of a run that finds ``data``, which it leaves there, and nothing beside it."""
    path.write_bytes(data)
    with pytest.raises(OutputError) as caught:
        ParquetFile(str(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == data
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


def test_files_of_many_row_groups_are_continued(tmp_path) -> None:
    path = tmp_path / "x.parquet"
    rows = [ROW | {"file_name": str(i), "alternatives": [{"text": "b", "score": -i}]} for i in range(25)]
    path.write_bytes(parquet_of(rows, row_group_size=10))
    assert run(path, "b.png") == [*rows, ROW | {"file_name": "b.png", "text": "a dog", "score": -2.0}]


def test_captions_and_answers_in_one_file(tmp_path) -> None:
    path = tmp_path / "x.parquet"
    run(path, "a.png", "what is it")
    run(path, "a.png")
    rows = run(path, "b.png")
    assert [(row["file_name"], row["question"]) for row in rows] == [
        ("a.png", "what is it"),
        ("a.png", None),
        ("b.png", None),
    ]


def test_an_unfinished_run_of_answers_is_continued_by_captions(tmp_path) -> None:
    path = tmp_path / "x.parquet"
    killed = ParquetFile(str(path), ("what is it",))
    killed.write(Item("a.png", "a.png", "a.png"), [RESULT])
    killed.close(complete=False)
    assert [row["question"] for row in run(path, "b.png")] == ["what is it", None]


def test_what_is_no_utf_8_is_escaped(tmp_path) -> None:
    path, name, question = tmp_path / "x.parquet", "\udcff.png", "what \udcff"
    output = ParquetFile(str(path), (question,))
    other = dataclasses.replace(RESULT, text="c\udcff")
    output.write(Item(name, name, name), [dataclasses.replace(RESULT, text="a\udcff", alternatives=(other,))])
    output.close(complete=True)
    (row,) = pq.read_table(path).to_pylist()
    assert (row["file_name"], row["question"], row["text"]) == (r"\udcff.png", r"what \udcff", r"a\udcff")
    assert row["alternatives"] == [{"text": r"c\udcff", "score": -2.0}]
    later = ParquetFile(str(path), (question,))
    assert later.has([name, "b.png"]) == [True, False]
    later.close(complete=True)


def test_a_page_larger_than_is_read(tmp_path) -> None:
    data = with_page_sizes(parquet_of([ROW] * 20), 2**31 - 1, 40)
    message = outcome(refusal, tmp_path / "x.parquet", data, memory_bytes=256 << 20)
    assert message.endswith("a page that becomes 2147483647 of 40 bytes")


def test_metadata_larger_than_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_pages, "_MAX_FOOTER_BYTES", 100)
    monkeypatch.setattr(pq, "ParquetFile", lambda *_, **__: pytest.fail("pyarrow parsed the metadata"))
    assert "at most 100 are read" in refusal(tmp_path / "x.parquet", parquet_of([ROW]))


@pytest.mark.parametrize(("limit", "rows_at_once"), [(1 << 28, 1000), (4500, 4), (10, 1)])
def test_rows_that_may_all_be_one_large_text_are_read_few_at_once(tmp_path, monkeypatch, limit, rows_at_once) -> None:
    counts = []

    class Counting(pq.ParquetFile):
        def iter_batches(self, batch_size, **options):
            counts.append(batch_size)
            return super().iter_batches(batch_size, **options)

    (tmp_path / "x.parquet").write_bytes(parquet_of([{"file_name": "a" * 1000}] * 20))
    monkeypatch.setattr(pq, "ParquetFile", Counting)
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", limit)
    ParquetFile(str(tmp_path / "x.parquet")).close(complete=False)
    assert counts == [rows_at_once]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"label": "a"}], "a row has no file_name"),
        ([{"file_name": None, "text": "a"}], "a row has no file_name"),
        ([{"file_name": "a", "text": "a", "label": "b"}], "its column 'label'"),
        ([{"file_name": "a", "text": b"a"}], "not a parquet file of results"),
        ([{"file_name": "a", "text": 5}], "not a parquet file of results"),
        ([{"file_name": "a", "score": "high"}], "not a parquet file of results"),
        ([{"file_name": "a", "alternatives": "b"}], "not a parquet file of results"),
    ],
)
def test_other_rows(tmp_path, rows, problem) -> None:
    assert problem in refusal(tmp_path / "x.parquet", parquet_of(rows))


def test_columns_without_rows(tmp_path) -> None:
    data = io.BytesIO()
    pq.write_table(pa.table({"label": pa.array([], pa.string())}), data)
    assert "no file_name" in refusal(tmp_path / "x.parquet", data.getvalue())


def test_a_column_that_comes_twice(tmp_path) -> None:
    data = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["file_name"] * 2), data)
    assert "its column 'file_name'" in refusal(tmp_path / "x.parquet", data.getvalue())
