"""Outputs that are no regular files: nothing waits without end, nothing that is not a file of results is replaced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gitfast.pipeline.folders.outputs import ItemOutputError, LineFile, OutputError, SidecarFiles
from gitfast.pipeline.folders.parquet import ParquetFile
from gitfast.pipeline.folders.records import JsonRecords
from gitfast.pipeline.folders.walk import Item
from gitfast.results import Result

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")

RESULT = Result(text="a cat", token_ids=(1,), score=-1.0, finish_reason="stop")


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "a.txt")
    return str(tmp_path / "a.txt")


def item(name: str) -> Item:
    return Item(name, name, name)


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_pipe_that_nobody_reads_is_an_error(pipe: str, existing) -> None:
    with pytest.raises(OutputError, match=r"a\.txt: nobody reads this pipe"):
        LineFile(pipe, JsonRecords(), existing=existing)


def test_a_pipe_is_written_while_it_is_read(pipe: str) -> None:
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    output = LineFile(pipe, JsonRecords())
    output.write(item("a.png"), [RESULT])
    assert os.read(reader, 1000).startswith(b'{"file_name": "a.png", "text": "a cat"')
    os.close(reader)
    with pytest.raises(OutputError, match="Broken pipe"):
        output.write(item("b.png"), [RESULT])
    output.close(complete=False)


def test_a_slow_reader_is_waited_for(pipe: str) -> None:
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    output, count, read = LineFile(pipe, JsonRecords()), 2000, bytearray()

    def drain() -> None:
        while part := os.read(reader, 4096):
            read.extend(part)

    thread = threading.Thread(target=drain)
    thread.start()
    for index in range(count):  # more than a pipe holds
        output.write(item(f"{index}.png"), [RESULT])
    output.close(complete=True)
    thread.join(60)
    os.close(reader)
    assert read.count(b"\n") == count


def test_texts_are_not_joined_with_a_pipe(pipe: str, tmp_path: Path) -> None:
    output = SidecarFiles(".txt", root=str(tmp_path), existing="append")
    with pytest.raises(ItemOutputError, match=r"a\.txt: expected a regular file, got a pipe"):
        output.write(item("a.png"), [RESULT])
    output.write(item("b.png"), [RESULT])
    assert (tmp_path / "b.txt").read_text() == "a cat\n"


def test_a_journal_is_a_file(pipe: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        SidecarFiles(".txt", root=str(tmp_path), existing="append", journal=pipe)


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_parquet_replaces_files_only(pipe: str, tmp_path: Path, existing) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(OutputError, match="not a regular file"):
        ParquetFile(pipe, existing=existing)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
