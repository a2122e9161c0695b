"""Outputs that are no regular files, or others write: nothing waits without end, and nothing is replaced unasked."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from gitfast.checkpoints.files import NonBlockingFile
from gitfast.pipeline.folders import outputs
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


@pytest.fixture
def waiting(pipe: str, monkeypatch):
    """A name of what is a regular file by its mode, and waits where others end, as /proc/kmsg."""
    writer = os.open(pipe, os.O_RDWR)
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: True)
    monkeypatch.setattr(stat, "S_ISFIFO", lambda mode: False)
    monkeypatch.setattr(NonBlockingFile, "seekable", lambda _: True)
    monkeypatch.setattr(NonBlockingFile, "seek", lambda *_: 0)
    yield pipe
    os.close(writer)


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_results_that_wait(waiting: str, existing) -> None:
    if existing == "overwrite":  # it is written beside what is there
        os.rename(waiting, f"{waiting}.overwrite-part")
    with pytest.raises(OutputError, match=rf"a\.txt.*: {os.strerror(errno.EAGAIN)}"):
        LineFile(waiting, JsonRecords(), existing=existing)


def test_a_journal_that_waits(waiting: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=rf"a\.txt: {os.strerror(errno.EAGAIN)}"):
        SidecarFiles(".txt", root=str(tmp_path), existing="append", journal=waiting)


def test_what_would_wait_is_an_error(pipe: str) -> None:
    with NonBlockingFile(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), "r+b") as file:
        for read in (file.readall, lambda: file.read(1), lambda: file.readinto(bytearray(1))):
            with pytest.raises(BlockingIOError):
                read()
        assert 0 < file.write(bytes(1 << 24)) < 1 << 24  # as much as a pipe holds
        with pytest.raises(BlockingIOError):
            file.write(b"a")
        assert file.read(1) == b"\0"


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


class TestTwoRuns:
    """Two runs that come to one text at the same time."""

    def test_the_second_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = str(tmp_path / "a.txt")
        rename = outputs.rename_open

        def written_meanwhile(*arguments: Any) -> None:
            with pytest.raises(OutputError, match=r"a\.txt: another run is writing it"):
                outputs._write_whole(target, b"second")
            rename(*arguments)

        monkeypatch.setattr(outputs, "rename_open", written_meanwhile)
        outputs._write_whole(target, b"first")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"first"}

    def test_what_the_first_has_finished_is_not_touched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "a.txt"
        lock = outputs.lock

        def finished_before(file: Any) -> bool:
            os.replace(file.name, target)
            return lock(file)

        monkeypatch.setattr(outputs, "lock", finished_before)
        with pytest.raises(OutputError, match=r"a\.txt: another run is writing it"):
            outputs._write_whole(str(target), b"second")
        assert target.exists()

    def test_what_a_killed_run_left_is_written_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = str(tmp_path / "a.txt")
        rename = outputs.rename_open

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(outputs, "rename_open", killed)
        with pytest.raises(KeyboardInterrupt):
            outputs._write_whole(target, b"a long text that was not renamed")
        monkeypatch.setattr(outputs, "rename_open", rename)
        (left,) = tmp_path.iterdir()
        assert left.suffix == ".gitfast-part"
        outputs._write_whole(target, b"short")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"short"}
