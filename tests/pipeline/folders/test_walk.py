"""The walk through folders: order, patterns, links, and files that are skipped."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from gitfast.errors import ImageError
from gitfast.pipeline.folders.walk import IMAGE_SUFFIXES, Walk, read_names


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def walk(*paths: object, **options) -> Walk:
    return Walk(paths=[str(path) for path in paths], suffixes=IMAGE_SUFFIXES, **options)


def test_files_come_in_the_order_of_their_paths(tmp_path):
    names = ["a.jpg", "a/b.png", "a/b/c.gif", "a-b.png", "b.PNG", "a/z.txt", "A.jpeg"]
    folder = make(tmp_path, *names)
    found = [item.path for item in walk(folder, recursive=True)]
    assert found == sorted(str(folder / name) for name in names if not name.endswith("txt"))
    assert [item.name for item in walk(folder, recursive=True, relative=True)] == [
        os.path.relpath(path, folder) for path in found
    ]
    assert [item.name for item in walk(folder, relative=True)] == ["A.jpeg", "a-b.png", "a.jpg", "b.PNG"]


def test_names_are_paths_where_several_are_given(tmp_path):
    folder = make(tmp_path, "x/a.jpg", "y/a.jpg")
    found = [item.name for item in walk(folder / "x", folder / "y", relative=True)]
    assert found == [str(folder / "x/a.jpg"), str(folder / "y/a.jpg")]
    assert [item.name for item in walk(f"{folder}/x/")] == [f"{folder}/x/a.jpg"]


def test_patterns(tmp_path):
    folder = make(tmp_path, "b.jpg", "a.jpg", "c/d.jpg", "[e].jpg")
    assert [Path(item.name).name for item in walk(folder / "*.jpg")] == ["[e].jpg", "a.jpg", "b.jpg"]
    assert [Path(item.name).name for item in walk(folder / "c*")] == ["d.jpg"], "a folder that matches is read"
    assert [item.source for item in walk(folder / "[e].jpg")] == [str(folder / "[e].jpg")]
    (item,) = walk(folder / "x*.jpg")
    assert isinstance(item.source, ImageError)


def test_folders_are_listed_as_they_are_reached(tmp_path, monkeypatch):
    folder = make(tmp_path, *(f"{i}/{j}.jpg" for i in range(3) for j in range(3)))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    items = iter(walk(folder, recursive=True))
    next(items)
    assert listed == [str(folder), str(folder / "0")]
    assert len(list(items)) == 8


def test_links_in_circles_end(tmp_path):
    folder = make(tmp_path / "photos", "a/x.jpg", "b/y.jpg")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "a").symlink_to(folder / "a")
    (folder / "self").symlink_to("self")
    followed = walk(folder, recursive=True, follow_links=True, relative=True)
    assert [item.name for item in followed] == ["a/x.jpg", "b/a/x.jpg", "b/y.jpg"]
    assert followed.report.irregular == 1
    (alone,) = [walk(folder, recursive=True, relative=True)]
    assert [item.name for item in alone] == ["a/x.jpg", "b/y.jpg"]
    assert alone.report.linked_folders == 2


def test_skipped_ones_are_asked_about_once(tmp_path):
    folder = make(tmp_path, *(f"{i:04}.jpg" for i in range(3000)))
    asked: list[str] = []

    def skip(names):
        asked.extend(names)
        return [name.endswith("5.jpg") for name in names]

    found = [item.name for item in walk(folder, relative=True, skip=skip)]
    assert len(found) == 2700
    assert asked == [str(folder), *sorted(path.name for path in folder.iterdir())]


def test_own_files_are_no_inputs(tmp_path):
    folder = make(tmp_path, "a.jpg", "out.jpg", "sub/out.jpg", "a.txt", ".0a1b2c3d.gitfast-part", "b.md")
    own = frozenset([str(folder / "out.jpg")])
    run = walk(folder, recursive=True, relative=True, ignored=own, ignored_suffix=".txt")
    assert [item.name for item in run] == ["a.jpg", "sub/out.jpg"]
    assert dict(run.report.skipped) == {".md": 1}


def test_counting(tmp_path):
    folder = make(tmp_path, "a.jpg", "b/c.jpg", "b/d.txt", "e.tar")
    assert walk(folder, recursive=True).count() == 2
    assert walk(folder, folder / "a.jpg", folder / "gone.jpg").count() == 3
    assert walk(folder / "e.tar").count() is None
    assert walk(files_from=io.BytesIO(b"")).count() is None


class Pipe:
    """Gives what was written, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def read(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], []),
        ([b"a\nb"], ["a", "b"]),
        ([b"a\r\n\n", b"b\n"], ["a", "b"]),
        ([b"a", b"b\nc", b"d"], ["ab", "cd"]),
        ([b"a\nb\0c", b"d\0"], ["a\nb", "cd"]),
        ([b"a\xff\n"], ["a\udcff"]),
    ],
)
def test_lists_of_names(pieces, expected):
    assert [name for names in read_names(Pipe(*pieces)) for name in names] == expected


def test_names_are_taken_as_they_come():
    pipe = Pipe(b"a\nb\n", b"c\n")
    assert next(read_names(pipe)) == ["a", "b"]
    assert pipe.pieces == [b"c\n"]
    assert [name for names in read_names(Pipe(b"a\nb"), null=True) for name in names] == ["a\nb"]


def test_a_list_without_ends_is_refused():
    with pytest.raises(ImageError, match="a name of more than"):
        list(read_names(Pipe(*[b"x" * 50_000] * 3)))


def test_a_device_of_separators_is_no_list():
    for separator in (b"\0", b"\n"):
        with pytest.raises(ImageError, match="more than 1048576 empty names in a row"):
            for _ in read_names(Pipe(*[separator * 65_536] * 100)):
                pass
        spaced = [separator * 60_000 + b"a" + separator] * 40
        assert [name for names in read_names(Pipe(*spaced)) for name in names] == ["a"] * 40
