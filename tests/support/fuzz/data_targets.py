"""Files of data: shards of pictures, references and answers for evaluation, and results that a run continues."""

from __future__ import annotations

import encodings.utf_16_be
import encodings.utf_16_le
import encodings.utf_32_be
import encodings.utf_32_le  # noqa: F401  # json.loads decodes with what the first bytes look like
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gitfast.errors import GitfastError
from gitfast.evaluation.files import read_answers, read_captions, read_questions, read_references
from gitfast.pipeline.folders.outputs import LineFile
from gitfast.pipeline.folders.records import JsonRecords, TextRecords
from gitfast.pipeline.folders.shards import read_shard
from gitfast.pipeline.folders.walk import read_names

from support.fuzz.loop import Target
from support.fuzz.mutations import changed_json
from support.fuzz.writing import read_file


def _members(path: Path) -> object:
    """The bytes of all members; a member or a shard that cannot be read is refused."""
    for _, value in read_shard(str(path), (".png", ".jpg"), lambda _: True):
        if isinstance(value, GitfastError):
            raise value
    return None


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.png", "b/é.jpg", "c.txt", "x" * 120 + ".png"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 9, {"comment": "a"}
            archive.addfile(info, io.BytesIO(b"123456789"))
    return buffer.getvalue()


def tar(folder: Path) -> Target:
    return Target(read_file(folder / "x.tar", _members), [_tar()], GitfastError, folder=folder)


def tar_gz(folder: Path) -> Target:
    return Target(read_file(folder / "x.tgz", _members), [gzip.compress(_tar())], GitfastError, folder=folder)


def parquet(folder: Path) -> Target:
    import pyarrow as pa
    import pyarrow.parquet as pq

    seeds = []
    for image in (b"123", {"bytes": b"123", "path": "a.png"}):
        for compression in ("none", "zstd"):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([{"image": image, "n": 1}] * 20), buffer, compression=compression)
            seeds.append(buffer.getvalue())
    return Target(read_file(folder / "x.parquet", _members), seeds, GitfastError, folder=folder)


def _evaluation(name: str, read: Callable[[Path], object], *documents: Any) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        seeds = [json.dumps(document).encode() for document in documents]
        return Target(read_file(folder / name, read), seeds, GitfastError, [changed_json] * 3, folder)

    return make


_ROW: dict[str, Any] = {"image_id": 1, "caption": "a cat"}
_COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [_ROW, {**_ROW, "id": 2}]}
_QUESTION: dict[str, Any] = {"question_id": 1, "image_id": 2, "question": "what?", "answer_type": "other"}
_VQA = {"annotations": [{**_QUESTION, "answers": [{"answer": "cat"}, {"answer": "a cat"}]}]}


def lines(folder: Path) -> Target:
    """Rows of JSON lines and of CSV by turns, in the same bytes."""
    seeds = [
        b'{"id": "a", "captions": ["x", "y"]}\n{"id": "b", "text": "z"}\n',
        b'image_id,caption\n1,"a cat"\n2,dog\n',
    ]
    reads = [read_file(folder / name, read_references) for name in ("x.jsonl", "x.csv")]

    def read(data: bytes) -> object:
        return reads[data.startswith(b"image")](data)

    return Target(read, seeds, GitfastError, folder=folder)


def _results(name: str, records: Any, seed: bytes, existing: Any) -> Callable[[Path], Target]:
    """A file of results, which a run reads to go on; the file that it writes is another."""

    def make(folder: Path) -> Target:
        part = folder / f"{name}.{existing}-part"

        def read(path: Path) -> object:
            part.unlink(missing_ok=True)
            file = LineFile(str(path), records, existing=existing)
            try:
                return file.has(["a.png", "b.png"])
            finally:
                file.close(complete=False)

        return Target(read_file(folder / name, read), [seed], GitfastError, [changed_json], folder)

    return make


_LINES = (
    b'{"file_name": "a.png", "text": "a cat", "score": -1.0}\n{"file_name": "\\u00e9", "question": "b", "text": ""}\n'
)


def results_parquet(folder: Path) -> Target:
    """A parquet file of results, read into the lines beside it that a run continues."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gitfast.pipeline.folders.parquet import ParquetFile

    def read(path: Path) -> object:
        output = ParquetFile(str(path))
        try:
            return output.has(["a.png", "b.png"])
        finally:
            output.close(complete=False)

    seeds = []
    for compression in ("none", "zstd"):
        buffer = io.BytesIO()
        rows = [json.loads(line) | {"alternatives": [{"text": "a", "score": -1.0}]} for line in _LINES.splitlines()]
        pq.write_table(pa.Table.from_pylist(rows * 10), buffer, compression=compression)
        seeds.append(buffer.getvalue())
    return Target(read_file(folder / "x.parquet", read), seeds, GitfastError, folder=folder)


def names(_: Path) -> Target:
    """Lists of files."""

    def read(data: bytes) -> object:
        return list(read_names(io.BytesIO(data)))

    return Target(read, [b"a.png\nb c.png\r\n", b"a.png\0b\nc.png\0", b"x" * 66_000], GitfastError)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "tar": tar,
    "tar-gz": tar_gz,
    "parquet": parquet,
    "references": _evaluation("x.json", read_references, _COCO, [_ROW], {"data": [{**_ROW, "reference_strs": ["a"]}]}),
    "captions": _evaluation("x.json", read_captions, [_ROW], {"annotations": [_ROW]}),
    "questions": _evaluation("x.json", read_questions, _VQA, [{**_QUESTION, "answer": "cat"}]),
    "answers": _evaluation("x.json", read_answers, [{"question_id": 1, "answer": "cat"}]),
    "references-lines": lines,
    "results-json": _results("x.jsonl", JsonRecords(), _LINES, "skip"),
    "results-joined": _results("x.jsonl", JsonRecords(), _LINES, "append"),
    "results-text": _results("x.txt", TextRecords(with_question=False), b"a.png\ta cat\nb\\t.png\tdog\n", "skip"),
    "results-parquet": results_parquet,
    "names": names,
}
