"""Names of files in lines of text, and the shards they fall to."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from gitfast.pipeline.folders.names import escape, printable, shard_of, unescape

names = st.binary(min_size=1, max_size=40).map(os.fsdecode)


@given(names)
def test_an_escaped_name_is_one_field_and_comes_back(name):
    field = escape(name)
    assert not set(field) & set("\t\n\r\x1b\x85\u2028")
    field.encode()
    assert unescape(field) == name


def test_what_a_terminal_acts_on():
    assert printable("a\x1b[31m\tb\nc\udcff\u202e\x9bé\\") == "a\\x1b[31m\\tb\\nc\\udcff\\u202e\\x9bé\\"
    assert escape("a\\b") == "a\\\\b"


@given(st.lists(names, unique=True), st.integers(1, 9))
def test_every_name_falls_to_one_shard(found, count):
    assert all(0 <= shard_of(name, count) < count for name in found)


def test_shards_are_the_same_on_every_machine():
    assert [shard_of(f"{i}.jpg", 4) for i in range(8)] == [3, 1, 1, 0, 0, 0, 3, 0]
    counts = [0] * 4
    for i in range(4000):
        counts[shard_of(f"photos/{i:05}.jpg", 4)] += 1
    assert min(counts) > 800
