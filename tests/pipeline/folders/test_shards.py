"""Shards are hostile: what is read of them is bounded, and what is damaged is told."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc

import pytest

from gitfast.errors import ImageError
from gitfast.pipeline.folders import shards
from gitfast.pipeline.folders.shards import read_shard


def tar_of(files: dict[str, bytes], **options) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def read(tmp_path, data: bytes, wanted=lambda _: True) -> list:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    return list(read_shard(str(path), (".png",), wanted))


def with_size(block: bytes, size: bytes) -> bytes:
    """A header with another size, and the checksum that goes with it."""
    header = bytearray(block[:512])
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + block[512:]


def test_members_in_order_and_only_what_is_wanted(tmp_path):
    files = {f"{i}.{end}": bytes([i]) * 1000 for i in range(5) for end in ("png", "json")}
    found = read(tmp_path, tar_of(files), wanted=lambda name: name != "3.png")
    assert found == [(f"{i}.png", bytes([i]) * 1000) for i in (0, 1, 2, 4)]


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path, format_):
    name = "a/" * 200 + "é.png"
    assert read(tmp_path, tar_of({name: b"x"}, format=format_)) == [(name, b"x")]


@pytest.mark.parametrize("cut", [0.3, 0.45, 0.6, 0.9])
def test_one_that_breaks_off_is_told(tmp_path, cut):
    data = tar_of({f"{i}.png": b"x" * 700 for i in range(4)})[: 4 * 1536]
    found = read(tmp_path, data[: int(len(data) * cut)])
    assert all(value == b"x" * 700 for _, value in found[:-1])
    name, error = found[-1]
    assert (name, isinstance(error, ImageError)) == ("", True)


def test_a_damaged_header_in_the_middle_is_told(tmp_path):
    data = bytearray(tar_of({f"{i}.png": b"x" * 700 for i in range(3)}))
    data[1536 + 150] ^= 1  # of the second checksum
    found = read(tmp_path, bytes(data))
    assert found[0] == ("0.png", b"x" * 700)
    assert "damaged (after 0.png)" in str(found[1][1])


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\0" * 100, b"x" * 10240])
def test_other_files_are_told(tmp_path, data):
    found = read(tmp_path, data)
    assert [name for name, _ in found] == [""]
    assert "x.tar: not a tar file" in str(found[0][1])


def test_a_negative_size_ends(tmp_path):
    data = with_size(tar_of({"0.png": b"x"}), b"\xff" * 12)
    assert "not a tar file" in str(read(tmp_path, data)[-1][1])


def test_a_member_too_large_is_passed_by(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_MAX_MEMBER_BYTES", 1000)
    found = read(tmp_path, tar_of({"0.png": b"x" * 1001, "1.png": b"y"}))
    assert "0.png: more than 1000 bytes" in str(found[0][1])
    assert found[1] == ("1.png", b"y")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_says_it_is_huge(tmp_path, kind):
    data = bytearray(tar_of({"0.png": b"x"}))
    data[156:157] = kind
    claimed = with_size(bytes(data), b"\x80" + struct.pack(">xxxQ", 1 << 33)) + bytes(8 << 20)
    tracemalloc.start()
    found = read(tmp_path, claimed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "damaged" in str(found[-1][1])
    assert peak < 4 << 20


def test_memory_does_not_grow_with_members(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({f"{i}.png": b"x" for i in range(20_000)}))
    members = read_shard(str(path), (".png",), lambda _: True)
    next(members)
    tracemalloc.start()
    count = sum(1 for _ in members)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, peak < 1 << 20) == (19_999, True)
