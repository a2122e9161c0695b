"""Parquet files that say of themselves what is not so."""

from __future__ import annotations


def varint(value: int) -> bytes:
    value = (value << 1 ^ value >> 31) & 0xFFFFFFFF  # zigzag
    groups = [value >> shift & 127 for shift in range(0, 35, 7)]
    return bytes(group | 128 for group in groups[:-1]) + bytes(groups[-1:])


def with_page_sizes(data: bytes, becomes: int, stored: int) -> bytes:
    """Change what the first page says of itself: type, size of what it becomes, size in the file."""
    assert data[:6] == b"PAR1\x15\x04", "the first page is no dictionary"
    end = 6
    for _ in range(2):
        assert data[end] == 0x15
        end = next(i for i in range(end + 1, len(data)) if data[i] < 128) + 1
    return data[:6] + b"\x15" + varint(becomes) + b"\x15" + varint(stored) + data[end:]
