"""Check that pages of parquet files are refused by what their headers state, before memory is taken for it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from gitfast.errors import ImageError
from gitfast.pipeline.folders import parquet_pages
from gitfast.pipeline.folders.parquet_pages import PageError, ParquetPages
from gitfast.pipeline.folders.shards import read_shard

from support.bounded import outcome
from support.parquet import with_page_sizes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MEMORY_BYTES = 256 << 20


def parquet_of(images: list[bytes], **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"n": list(range(len(images))), "image": images}), buffer, **options)
    return buffer.getvalue()


def read(path: Path, data: bytes) -> list[tuple[str, object]]:
    path.write_bytes(data)
    return [
        (name, value if isinstance(value, ImageError) else len(value))
        for name, value in read_shard(str(path), (), lambda _: True)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"compression": "zstd", "data_page_version": "2.0", "write_page_checksum": True, "write_page_index": True},
        {"compression": "gzip", "version": "1.0", "row_group_size": 3},
        {"compression": "lz4", "use_dictionary": False, "data_page_size": 100},
        {"use_dictionary": ["n"], "row_group_size": 1, "write_statistics": False},
    ],
)
def test_files_as_they_are_written(tmp_path, options) -> None:
    images = [os.urandom(i % 7 * 1000) for i in range(50)]
    assert read(tmp_path / "a.parquet", parquet_of(images, **options)) == [
        (str(i), len(image)) for i, image in enumerate(images)
    ]


@pytest.mark.parametrize(("becomes", "stored"), [(40, 1_765_341_912), (2**31 - 1, 40), (40, -1), (-1, 40)])
def test_a_page_larger_than_the_file_or_than_is_read(tmp_path, becomes, stored) -> None:
    data = with_page_sizes(parquet_of([b"123"] * 20), becomes, stored)
    (name, error), *others = outcome(read, tmp_path / "a.parquet", data, memory_bytes=MEMORY_BYTES)
    assert (name, others) == ("", [])
    assert f"a page {'that becomes' if stored == 40 else 'of'} {becomes if stored == 40 else stored} " in str(error)


def test_a_page_that_becomes_much_more_than_it_takes(tmp_path, monkeypatch) -> None:
    data = parquet_of([bytes(3 << 20)], compression="zstd", use_dictionary=False)
    assert read(tmp_path / "a.parquet", data) == [("0", 3 << 20)]
    monkeypatch.setattr(parquet_pages, "_MAX_PAGE_BYTES", 1 << 20)
    ((_, error),) = read(tmp_path / "a.parquet", data)
    assert "becomes 31457" in str(error)
    pixels = parquet_of([os.urandom(3 << 20)], compression="zstd", use_dictionary=False)
    assert read(tmp_path / "a.parquet", pixels) == [("0", 3 << 20)]  # as large as it is in the file


def test_rows_before_a_damaged_group_are_read(tmp_path) -> None:
    data = bytearray(parquet_of([b"123"] * 20, row_group_size=10, compression="none", use_dictionary=False))
    begin = data.index(b"\x03\0\0\x00123", len(data) // 3)
    page = data.rindex(b"\x15\0\x15", 0, begin)
    data[page : page + 3] = b"\xff\xff\xff"
    *rows, (_, error) = read(tmp_path / "a.parquet", bytes(data))
    assert rows == [(str(i), 3) for i in range(10)]
    assert "after row 10" in str(error)


def test_one_image_in_many_rows_is_not_in_memory_as_often(tmp_path) -> None:
    data = parquet_of([bytes(40 << 20)] * 30)
    assert len(data) < 4 << 20
    rows = outcome(read, tmp_path / "a.parquet", data, memory_bytes=600 << 20)
    assert rows == [(str(i), 40 << 20) for i in range(30)]


def listed(value: bytes, times: int) -> pa.Array:
    """A list of one value, many times, that takes next to nothing in a file."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([value]))
    return pa.ListArray.from_arrays(pa.array([0, times], pa.int32()), values)


def test_a_list_beside_the_bytes_of_an_image_is_not_read(tmp_path) -> None:
    image = pa.StructArray.from_arrays([pa.array([b"123"]), listed(bytes(8 << 20), 100)], ["bytes", "path"])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": image}), buffer, compression="zstd", store_schema=False)
    assert len(buffer.getvalue()) < 10_000
    rows = outcome(read, tmp_path / "a.parquet", buffer.getvalue(), memory_bytes=600 << 20)
    assert rows == [("0", 3)]


@pytest.mark.parametrize("name", ["image", "image.bytes"])
def test_a_column_that_shares_the_name_of_the_images_is_not_read(tmp_path, name) -> None:
    image = pa.StructArray.from_arrays([pa.array([b"123"])], ["bytes"])
    table = pa.Table.from_arrays([listed(bytes(8 << 20), 100), image], [name, "image"])
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", store_schema=False)
    ((_, error),) = outcome(read, tmp_path / "a.parquet", buffer.getvalue(), memory_bytes=600 << 20)
    assert "several columns, or parts of one, share the name of 'image'" in str(error)


def test_a_part_of_an_image_that_shares_its_name_is_not_read(tmp_path) -> None:
    image = pa.StructArray.from_arrays([pa.array([b"123"]), listed(bytes(8 << 20), 100)], ["bytes", "bytes"])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": image}), buffer, compression="zstd", store_schema=False)
    ((_, error),) = outcome(read, tmp_path / "a.parquet", buffer.getvalue(), memory_bytes=600 << 20)
    assert "several columns, or parts of one, share the name of 'image'" in str(error)


def test_columns_named_like_parts_of_others_are_passed_by(tmp_path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image.bytes": [1], "image": [b"123"], "image.width": [2]}), buffer)
    assert read(tmp_path / "a.parquet", buffer.getvalue()) == [("0", 3)]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"PAR1" + bytes(8) + b"PAR1", b"x" * 99])
def test_what_is_no_parquet_file(tmp_path, data) -> None:
    ((_, error),) = read(tmp_path / "a.parquet", data)
    assert "a.parquet: not a parquet file, or damaged" in str(error)


@pytest.mark.parametrize(
    ("footer", "problem"),
    [
        (b"\x1c" * 2000, "structs within structs"),
        (b"\x49\xfc" + b"\xff" * 8 + b"\x01", "damaged metadata"),  # a list of 2^63 structs
        (b"\x15" + b"\xff" * 11, "more than 64 bits"),
        (b"\x1b\x00", "of no kind"),
        (b"\x16\x02\x05\x02\x02", "comes twice"),
        (b"\x18\x7f", "damaged metadata"),  # 127 bytes that are not there
    ],
)
def test_damaged_metadata(tmp_path, footer, problem) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with open(path, "rb") as data, pytest.raises(PageError, match=problem):
        ParquetPages(data)


def test_a_column_that_is_a_number(tmp_path) -> None:
    column = b"\x35\x02\x00"  # field 3, a number
    footer = b"\x49\x1c" + b"\x19\x1c" + column + b"\x00" + b"\x00"  # row groups, columns
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with open(path, "rb") as data, pytest.raises(PageError, match="a column that is no struct"):
        ParquetPages(data).check(0)


def test_metadata_larger_than_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_pages, "_MAX_FOOTER_BYTES", 100)
    monkeypatch.setattr(pq, "ParquetFile", lambda *_, **__: pytest.fail("pyarrow parsed the metadata"))
    ((_, error),) = read(tmp_path / "a.parquet", parquet_of([b"123"]))
    assert "at most 100 are read" in str(error)
